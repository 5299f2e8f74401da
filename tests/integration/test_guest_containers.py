"""Containers in a real guest: their walls, their limits, and what outlives them."""

from __future__ import annotations

import asyncio
import json

import pytest

from cellmesh.api.common.v1 import container_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2
from cellmesh.mesh.errors import RemoteError
from support.cell import MARK, Cell

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

_TRIES = """
import errno, json, os, socket
def errno_of(act):
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def written(path):
    return lambda: os.write(os.open(path, os.O_WRONLY), b"0")
print(json.dumps({
    "vsock": errno_of(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)),
    "packet": errno_of(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "raw": errno_of(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
    "outside": errno_of(lambda: socket.create_connection(("192.0.2.1", 80), 1)),
    "namespace": errno_of(lambda: os.unshare(os.CLONE_NEWUSER)),
    "device": errno_of(lambda: os.mknod("/tmp/null", 0o020666, os.makedev(1, 3))),
    "sysctl": errno_of(written("/proc/sys/kernel/pid_max")),
    "limit": errno_of(written("/sys/fs/cgroup/memory.max")),
    "chroot": errno_of(lambda: os.chroot("/tmp")),
    "interfaces": [name for _, name in socket.if_nameindex()],
}))
"""
_HOG = "held = []\nwhile True: held.append(bytearray(b'x' * (4 << 20)))"


async def test_root_of_a_container_is_root_of_nothing_else(cell: Cell) -> None:
    """Prove that root inside reaches no vsock, network, device, namespace, limit or kernel setting."""
    tried = json.loads(await cell.root.python(_TRIES))
    assert tried.pop("interfaces") == ["lo"]
    assert tried == {
        "vsock": "EAFNOSUPPORT",
        "packet": "EAFNOSUPPORT",
        "raw": "EPERM",
        "outside": "ENETUNREACH",
        "namespace": "EPERM",
        "device": "EPERM",
        # Owned by the machine's root, which has no id in here; read-only besides.
        "sysctl": "EACCES",
        "limit": "EACCES",
        "chroot": "EPERM",
    }


@pytest.mark.parametrize("who", ["root", "dev"])
async def test_every_lock_is_on_in_a_command_too(cell: Cell, who: str) -> None:
    """Prove that a command run later has the filter, no new privileges, and no protection from the kernel."""
    box = cell.root if who == "root" else cell.dev
    status = await box.shell("cat /proc/self/status; echo score $(cat /proc/self/oom_score_adj)")
    lines = dict(line.split(None, 1) for line in status.splitlines() if len(line.split(None, 1)) == 2)
    assert (lines["Seccomp:"], lines["NoNewPrivs:"], lines["score"]) == ("2", "1", "0")
    # chown, dac_override, fowner, fsetid, kill, setgid, setuid; none for a user.
    assert int(lines["CapBnd:"], 16) == (0b11111011 if who == "root" else 0)
    assert int(lines["CapAmb:"], 16) == 0


async def test_a_neighbour_is_not_seen(cell: Cell) -> None:
    """Prove that no process, file, variable or port of another container can be had."""
    await cell.live.shell("echo secret > /tmp/mine")
    assert MARK in await cell.live.shell("cat /proc/1/environ")
    seen = await cell.root.shell("cat /proc/*/environ /tmp/mine 2>/dev/null; ls /data /run /images 2>/dev/null; true")
    assert MARK not in seen
    assert "secret" not in seen
    connect = "import socket; socket.create_connection(('127.0.0.1', 8080), 1)"
    refused = await cell.root.run("python3", "-c", connect)
    assert b"ConnectionRefusedError" in refused.stderr


async def test_no_container_owns_a_device(cell: Cell) -> None:
    """Prove that starting containers and commands gave none of the machine's devices away."""
    for box in (cell.live, cell.root):
        # 65534 is an owner who has no id in the container: the machine's root.
        assert set((await box.shell("stat -c '%u %a' /dev/null /dev/zero /dev/tty")).splitlines()) == {"65534 666"}


async def test_a_hog_is_killed_and_not_its_container(cell: Cell) -> None:
    """Prove that the process over the limit alone is killed, and that the kill is told and counted."""
    ended = await cell.dev.run("python3", "-c", _HOG)
    assert (ended.exit_code, ended.oom_killed) == (137, True)
    container = await cell.until("sandbox-dev", lambda status: status.oom_kills >= 1)
    assert container.status.state == container_pb2.CONTAINER_STATE_RUNNING
    assert container.status.restart_count == 0
    assert await cell.live.shell("echo well") == "well"


async def test_a_fork_bomb_fills_its_own_container_only(cell: Cell) -> None:
    """Prove that processes are bounded, refusals are counted, and the neighbours go on."""
    box = await cell.start("bomb", "sleep", "1000", resources=container_pb2.ContainerResources(pids=20))
    ended = await box.run("sh", "-c", "i=0; while [ $i -lt 40 ]; do sleep 60 & i=$((i + 1)); done")
    assert ended.exit_code != 0
    request = container_service_pb2.GetStatsRequest(vm_id=cell.vm_id, container_name="bomb")
    stats = (await cell.it.containers.GetStats(request)).stats
    assert stats.pids <= 20
    assert stats.pids_refused > 0
    assert await cell.live.shell("echo well") == "well"


async def test_what_lasts_and_what_does_not(cell: Cell) -> None:
    """Prove that a lasting directory is the user's own and outlives a new generation with all it holds."""
    lasting = [container_pb2.PersistentPath(path="/app/keep")]
    box = await cell.start("keeper", "sleep", "1000", persistent_paths=lasting)
    await box.shell("echo kept > /app/keep/file")
    first = (await cell.until("keeper", lambda status: status.generation >= 1)).generation
    box = await cell.start("keeper", "sleep", "2000", persistent_paths=lasting)
    assert await box.shell("cat /app/keep/file") == "kept"
    again = await cell.until("keeper", lambda status: status.generation > first)
    assert again.generation > first
    assert await cell.root.shell("ls /app/keep 2>/dev/null; echo end") == "end"


async def test_a_crash_loop_ends(cell: Cell) -> None:
    """Prove that a container that keeps ending is started again as often as it may be, and then given up."""
    policy = container_pb2.RestartPolicy(max_restarts=2)
    policy.initial_backoff.FromMilliseconds(10)
    policy.max_backoff.FromMilliseconds(10)
    await cell.start("crash", "sh", "-c", "echo again; exit 3", restart_policy=policy)
    container = await cell.until("crash", lambda status: status.state == container_pb2.CONTAINER_STATE_FAILED)
    assert (container.status.exit_code, container.status.restart_count) == (3, 2)
    logs = container_service_pb2.StreamLogsRequest(vm_id=cell.vm_id, container_name="crash")
    async with asyncio.timeout(60):
        said = [chunk.data async for part in cell.it.containers.StreamLogs(logs) for chunk in part.chunks]
    assert b"".join(said) == b"again\n" * 3


async def test_a_provider_key_keeps_a_container_from_starting(cell: Cell) -> None:
    """Prove that the guest refuses a container that carries a key, and never says the key."""
    key = "sk-" + "a1" * 16
    variable = container_pb2.EnvironmentVariable(name="INNOCENT", value=key)
    with pytest.raises(RemoteError) as refused:
        await cell.start("keyed", "sleep", "1", environment=[variable])
    assert refused.value.reason == "PROVIDER_KEY_PRESENT"
    assert key not in str(refused.value)
