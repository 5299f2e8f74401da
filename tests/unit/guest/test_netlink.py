"""The bound on netlink sockets: answers to a real filter of a real process."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from cellmesh.guest.containers.netlink import MOST_SOCKETS, NetlinkBound

pytestmark = pytest.mark.asyncio

PROGRAM = """
import array, ctypes, json, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x40000000) == 0
# Load the call's number; if it is socket(), load its first argument; if that is AF_NETLINK, ask who listens.
code = b"".join(struct.pack("=HBBI", *each) for each in (
    (0x20, 0, 0, 0), (0x15, 0, 3, 41), (0x20, 0, 0, 16), (0x15, 0, 1, 16),
    (0x06, 0, 0, 0x7FC00000), (0x06, 0, 0, 0x7FFF0000),
))
held = ctypes.create_string_buffer(code)
program = struct.pack("=H6xQ", 6, ctypes.addressof(held))
assert libc.prctl(38, 1, 0, 0, 0) == 0
listener = libc.syscall(ctypes.c_long(317), 1, 8, program)
assert listener >= 0, ctypes.get_errno()
with socket.socket(socket.AF_UNIX) as way:
    way.connect(sys.argv[1])
    socket.send_fds(way, [b"{}"], [listener])
def most():
    opened = []
    try:
        while len(opened) < 100:
            opened.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
    except OSError as error:
        return len(opened), error.errno
print(json.dumps([most(), most()]))
"""
ENOBUFS = 105


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_namespace_gets_so_many_and_again_once_they_are_closed(tmp_path: Path) -> None:
    """Prove that the bound holds, that closed sockets count no more, and that no descriptor stays behind."""
    bound = NetlinkBound()
    bound.listen(tmp_path / "listener")
    before = descriptors()
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, str(tmp_path / "listener"), stdout=asyncio.subprocess.PIPE
        )
        said, _ = await process.communicate()
        assert json.loads(said) == [[MOST_SOCKETS, ENOBUFS], [MOST_SOCKETS, ENOBUFS]]
    async with asyncio.timeout(60):
        while True:
            if descriptors() <= before:
                break
            await asyncio.sleep(0.01)
    bound.close()
