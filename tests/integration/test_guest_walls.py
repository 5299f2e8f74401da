"""The walls between containers of one VM, and around each, as programs in a real guest find them."""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from typing import Any

import pytest

from cellmesh.api.common.v1 import container_pb2
from support import walls
from support.cell import MARK, Cell
from support.commands import Box, ExecStream

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module")]

EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
ORDINARY_DEVICES = {"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"}
ALLOWED_CAPABILITIES = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7))
"""CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID: over the container's own ids only."""


async def tell(box: Box, program: str) -> dict[str, Any]:
    """Run a program of `walls` in a container and return what it tells."""
    told: dict[str, Any] = json.loads(await box.python(program))
    return told


async def status(box: Box, pid: str) -> dict[str, str]:
    """Return /proc/PID/status of a container."""
    lines = (await box.shell(f"cat /proc/{pid}/status")).splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def test_neither_sees_the_others_files(cell: Cell) -> None:
    """Prove that a file of one container is found by itself and by nobody else, not even by another's root."""
    secret = f"secret-of-live-{uuid.uuid4()}"
    find = f"find / -path /usr -prune -o -name {secret} -print 2>/dev/null | head -1"
    await cell.live.shell(f"echo mine > /tmp/{secret}")
    assert await asyncio.gather(cell.dev.shell(find), cell.root.shell(find)) == ["", ""]
    assert await cell.live.shell(find) == f"/tmp/{secret}"


async def test_neither_sees_the_others_processes_and_environment(cell: Cell) -> None:
    """Prove that what runs in one container, and with what environment, is in no other's /proc."""
    look = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'"
    async with ExecStream(cell.it, cell.live.opening("sh", "-c", "echo up; exec sleep 87654")) as stream:
        await stream.read()
        await stream.read_until(b"up\n")
        seen = {box.name: await box.shell(look) for box in (cell.live, cell.dev, cell.root)}
    assert "87654" in seen["sandbox-live"]
    assert MARK in seen["sandbox-live"]
    for other in ("sandbox-dev", "root"):
        assert "server.py" in seen[other]
        assert "87654" not in seen[other]
        assert MARK not in seen[other]


async def test_neither_reaches_the_others_ports(cell: Cell) -> None:
    """Prove that all serve one port without a clash, and that a port or abstract socket of one is nobody else's."""
    who = "wget -qSO /dev/null http://127.0.0.1:8080/ 2>&1 | grep X-App"
    for box, name in ((cell.live, "sandbox-live"), (cell.dev, "sandbox-dev")):
        assert (await box.shell(who)).strip() == f"X-App: {name}"
    async with ExecStream(cell.it, cell.live.opening("python3", "-c", walls.LISTEN)) as stream:
        await stream.read()
        await stream.read_until(b"listening\n")
        assert await tell(cell.live, walls.CONNECT) == {"port": "connected", "abstract": "connected"}
        refused = {"port": "ConnectionRefusedError", "abstract": "ConnectionRefusedError"}
        assert await tell(cell.dev, walls.CONNECT) == refused
        assert await tell(cell.root, walls.CONNECT) == refused
    interfaces = await cell.root.shell("tail -n +3 /proc/net/dev | cut -d: -f1")
    assert interfaces.split() == ["lo"]


async def test_no_container_opens_the_way_to_the_host(cell: Cell) -> None:
    """Prove that AF_VSOCK, where only the agent may speak, and raw families are refused, ordinary sockets not."""
    refused = dict.fromkeys(("vsock", "vsock_dgram", "alg", "packet"), EAFNOSUPPORT)
    for box in (cell.live, cell.root):
        assert await tell(box, walls.SOCKETS) == {"inet": 0, "unix": 0, **refused}
    foreign = await tell(cell.root, walls.FOREIGN_CALLS)
    assert foreign.pop("inet") == 0
    assert len(foreign) == 3
    assert set(foreign.values()) <= {1, -signal.SIGSYS}
    assert await cell.root.shell("tail -n +2 /proc/net/unix; find / -path /proc -prune -o -type s -print") == ""


async def test_no_container_inherits_from_the_agent(cell: Cell) -> None:
    """Prove that a container's own process and a command have three descriptors, none of the agent's."""
    async with cell.running("bare", "sleep", "86400") as box:
        own = "import os; print(*sorted({*os.listdir('/proc/self/fd')}, key=int))"
        assert await box.shell("ls /proc/1/fd") == "0\n1\n2"
        # The fourth is of the listing itself.
        assert await box.python(own) == "0 1 2 3"


async def test_no_container_has_or_makes_devices(cell: Cell) -> None:
    """Prove that there is no device but the harmless ones, and that root can make none."""
    told = await tell(cell.root, walls.DEVICES)
    names = {path.removeprefix("/dev/") for path in told["found"] if not path.startswith("/dev/pts/")}
    assert {"null", "urandom"} <= names <= ORDINARY_DEVICES
    assert not any(is_block for is_block, _ in told["found"].values())
    assert set(told["made"].values()) == {EPERM}


async def test_every_process_is_held_by_the_same_locks(cell: Cell) -> None:
    """Prove that containers and commands get no new privilege, any call or any capability over the machine."""
    for box in (cell.live, cell.dev, cell.root):
        for pid in ("1", "self"):
            found = await status(box, pid)
            assert [found["NoNewPrivs"], found["Seccomp"]] == ["1", "2"]
            allowed = ALLOWED_CAPABILITIES if box is cell.root else 0
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(found[name], 16) & ~allowed == 0, (box.name, pid, name)


async def test_each_container_has_ids_of_its_own(cell: Cell) -> None:
    """Prove that a container's root is nobody's root: its ids map to 65536 that no other container has."""
    starts = set()
    for box in (cell.live, cell.dev, cell.root):
        inside, outside, count = (await box.shell("cat /proc/self/uid_map /proc/self/gid_map | sort -u")).split()
        assert (inside, count) == ("0", "65536")
        assert int(outside) >= 100_000
        starts.add(int(outside))
    assert len(starts) == 3
    assert min(b - a for a, b in zip(sorted(starts), sorted(starts)[1:], strict=False)) >= 65536


async def test_root_makes_none_of_the_machines_calls(cell: Cell) -> None:
    """Prove that each call into the kernel's configuration, other namespaces and other processes is refused to root."""
    told = await tell(cell.root, walls.CALLS)
    assert told.pop("getpid") == 0
    assert {name: errno for name, errno in told.items() if errno not in {EPERM, ENOSYS}} == {}


async def test_root_changes_no_limit_and_no_setting(cell: Cell) -> None:
    """Prove that limits and kernel settings cannot be written, and that kernel memory reads as nothing."""
    told = await tell(cell.root, walls.FILES)
    assert told.pop("/proc/kcore") == 0
    assert set(told.values()) <= {"OSError", "PermissionError"}, told


async def test_root_moves_no_file_to_another_account(cell: Cell) -> None:
    """Prove that layer and persistent paths are counted for the container, and that its root can't change that."""
    lasting = [container_pb2.PersistentPath(path="/srv/lasting")]
    # A name of its own each time: in a guest without walls, what an earlier one left is in another account.
    name = f"lasting-{uuid.uuid4().hex[:8]}"
    async with cell.running(name, "sleep", "86400", image="root", persistent_paths=lasting) as box:
        assert await tell(box, walls.PROJECTS) == {"counted": True}
