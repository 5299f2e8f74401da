"""What the agent alone can get wrong when it runs things in a real guest's containers."""

from __future__ import annotations

import asyncio

import pytest

from cellmesh.api.common.v1 import container_pb2
from support.cell import Cell

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

COMMANDS = 24
_HOG = "held = []\nwhile True: held.append(bytearray(b'x' * (4 << 20)))"


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


async def test_no_command_is_spared_even_at_first(cell: Cell) -> None:
    """Prove that commands that ask at once, many beside each other, have nothing of the agent's protection."""
    read = ("cat", "/proc/self/oom_score_adj")
    told = await asyncio.gather(*(cell.live.run(*read) for _ in range(COMMANDS)))
    assert {ended.text for ended in told} == {"0"}


async def test_containers_share_no_namespace(cell: Cell) -> None:
    """Prove that two containers have nothing of seven kinds in common."""
    links = "cd /proc/self/ns && for kind in cgroup ipc mnt net pid user uts; do readlink $kind; done"
    theirs, ours = [set((await box.shell(links)).splitlines()) for box in (cell.live, cell.root)]
    assert len(theirs) == len(ours) == 7
    assert not theirs & ours


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
