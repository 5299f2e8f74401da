"""Processes and their identity: waited for, signalled and adopted only when they are certainly the right one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from cellmesh.hypervisor.vmm import Doubtful, Gone, Handle, Stray, Vmm, adopt, handle_file, process, sweep
from cellmesh.hypervisor.vmm.layout import Layout

VM = "0123456789ab-4cde-8f01-234567890abc"
Start = Callable[..., int]


@pytest.fixture
def root() -> Iterator[Path]:
    """Give a directory for one hypervisor."""
    with tempfile.TemporaryDirectory(prefix="cm-") as directory:
        yield Path(directory)


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """Give a way to start sleeping processes with any arguments; they are killed at the end."""
    started: list[int] = []

    def begin(*arguments: str) -> int:
        pid = process.start([sys.executable, "-c", "import signal; signal.pause()", *arguments], cwd=Path("/"))
        started.append(pid)
        return pid

    yield begin
    for pid in started:
        if (ticks := process.start_ticks(pid)) is not None:
            process.send_signal(pid, ticks, signal.SIGKILL)
            await process.wait(pid, ticks)
        process.reap(pid)


def handle(layout: Layout, pid: int, ticks: int | None = None) -> Handle:
    """Return and write a handle for a process."""
    made = Handle(
        vm_id=VM,
        epoch=1,
        pid=pid,
        start_ticks=(process.start_ticks(pid) or 0) if ticks is None else ticks,
        host_boot_id=process.boot_id(),
        uid=os.getuid(),
        bridge_pid=0,
        bridge_start_ticks=0,
        directory=layout.run(VM),
        created=datetime.now(UTC),
    )
    handle_file.write(layout.handle(VM), made)
    return made


@pytest.fixture
def place(root: Path) -> Layout:
    """Give a prepared layout."""
    layout = Layout(run_dir=root / "run", state_dir=root / "state")
    layout.make(VM, uid=os.getuid(), separate=False)
    return layout


def identify(layout: Layout) -> object:
    """Identify the VM's process as a restarted hypervisor does."""
    return adopt.identify(layout.handle(VM), layout.run(VM))


@pytest.mark.asyncio
async def test_a_death_is_seen_and_its_status_known(start: Start) -> None:
    """Prove that waiting ends with the process, and that the status of a child can be collected once."""
    pid = start()
    ticks = process.start_ticks(pid)
    assert ticks is not None
    assert not await process.wait(pid, ticks, seconds=0.01)
    waiting = [asyncio.create_task(process.wait(pid, ticks)) for _ in range(3)]
    process.send_signal(pid, ticks, signal.SIGKILL)
    assert await asyncio.gather(*waiting) == [True] * 3
    status = process.reap(pid)
    assert status is not None
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert process.reap(pid) is None


@pytest.mark.asyncio
async def test_a_reused_pid_is_neither_waited_for_nor_signalled(start: Start) -> None:
    """Prove that another process with the same pid counts as gone and is left alone."""
    pid = start()
    ticks = process.start_ticks(pid)
    assert ticks is not None
    assert await process.wait(pid, ticks - 1)
    process.send_signal(pid, ticks - 1, signal.SIGKILL)
    assert process.is_alive(pid, ticks)


@pytest.mark.asyncio
async def test_a_started_process_inherits_nothing(root: Path, start: Start) -> None:
    """Prove that no environment, no file and no session of ours reaches a VM's process."""
    with (root / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        pid = start()
        # It may be opening files of its own by now; what counts is that none of them is ours.
        ours, kept = _open_files(os.getpid()), _open_files(pid)
        assert root / "open" in ours
    assert kept & ours - {Path("/dev/null")} == set()
    assert Path("/dev/null") in kept
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    assert os.getsid(pid) == pid


@pytest.mark.asyncio
async def test_a_handle_that_fits_names_the_process(place: Layout, start: Start) -> None:
    """Prove that pid, start tick, boot id and arguments together identify a VMM."""
    known = handle(place, start("--api-socket", f"path={place.run(VM)}/api.sock"))
    assert identify(place) == known


@pytest.mark.asyncio
async def test_whatever_does_not_fit_is_gone_or_doubtful(place: Layout, start: Start) -> None:
    """Prove drill 43: a reboot, a reused pid, other arguments and a torn file are never taken for the VM."""
    assert identify(place) == Gone(reason="never_started")
    known = handle(place, start("--api-socket", "path=/elsewhere/api.sock"))
    assert isinstance(found := identify(place), Doubtful)
    assert (found.reason, found.handle) == ("not_ours", None)
    handle(place, known.pid, ticks=known.start_ticks - 1)
    assert identify(place) == Gone(reason="pid_reused")
    handle_file.write(place.handle(VM), replace(known, host_boot_id="another"))
    assert identify(place) == Gone(reason="rebooted")
    place.handle(VM).write_text("{")
    assert isinstance(found := identify(place), Doubtful)
    assert found.reason == "handle_unreadable"
    assert process.is_alive(known.pid, known.start_ticks)


@pytest.mark.asyncio
async def test_a_start_that_was_only_intended_is_found_by_its_arguments(place: Layout, start: Start) -> None:
    """Prove that a hypervisor killed between intent and pid finds what it started, if it is the only one."""
    handle(place, 0)
    assert identify(place) == Gone(reason="never_started")
    pid = start("--api-socket", f"path={place.run(VM)}/api.sock")
    found = identify(place)
    assert isinstance(found, Handle)
    assert (found.pid, found.start_ticks) == (pid, process.start_ticks(pid))
    start("--api-socket", f"path={place.run(VM)}/api.sock")
    assert isinstance(several := identify(place), Doubtful)
    assert several.reason == "several"


@pytest.mark.asyncio
async def test_a_process_without_a_handle_is_doubtful(place: Layout, start: Start) -> None:
    """Prove that a VMM in the VM's directory that no handle names is not called gone."""
    start("--api-socket", f"path={place.run(VM)}/api.sock")
    assert isinstance(found := identify(place), Doubtful)
    assert found.reason == "not_ours"


@pytest.mark.asyncio
async def test_a_death_between_two_looks_is_no_stranger(
    place: Layout, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VMM that dies while it is looked for is gone, and its VM not quarantined for what is there no longer."""
    pid = start(sweep.API_FLAG, f"path={place.run(VM)}/api.sock")
    known = handle(place, pid)
    look = sweep.vmm_processes

    def found_then_killed(directory: Path) -> list[int]:
        found = look(directory)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return found

    monkeypatch.setattr(sweep, "vmm_processes", found_then_killed)
    assert identify(place) == Gone(reason="exited")
    assert await process.wait(pid, known.start_ticks)


@pytest.mark.asyncio
async def test_one_that_is_dying_is_waited_for(place: Layout, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VMM that gives its memory back has no arguments any more and still lives: it is ours, and soon gone."""
    pid = start(sweep.API_FLAG, f"path={place.run(VM)}/api.sock")
    known = handle(place, pid)
    with monkeypatch.context() as dying:
        dying.setattr(process, "argv", lambda _pid: ())
        assert identify(place) == known
        asyncio.get_running_loop().call_later(0.2, os.kill, pid, signal.SIGKILL)
        assert await adopt.settle(known) == Gone(reason="exited")


@pytest.mark.asyncio
async def test_a_sweep_names_strays_and_touches_none(root: Path, place: Layout, start: Start) -> None:
    """Prove drill 44: unknown is reported, unreadable is reported as such, known is left out, nothing dies."""
    vmm = Vmm(
        binary=Path("/bin/false"),
        run_dir=root / "run",
        state_dir=root / "state",
        uid_base=None,
        failpoint=lambda _: None,
    )
    ours = start("--api-socket", f"path={place.run(VM)}/api.sock")
    stray = start("--api-socket", f"path={root}/run/vm/ffffffffffff/api.sock")
    bridge = start(sweep.FLAG, f"{root}/run/vm/eeeeeeeeeeee")
    start("--api-socket", "path=/another/hypervisor/vm/dddddddddddd/api.sock")
    (root / "run/vm/not\x1bahex").mkdir()
    found = {(entry.kind, entry.name, entry.pid) for entry in vmm.sweep([VM])}
    assert found == {
        ("vmm", "ffffffffffff", stray),
        ("bridge", "eeeeeeeeeeee", bridge),
        ("unreadable", "not\\x1bahex", None),
    }
    everything = vmm.sweep([])
    assert Stray(kind="vmm", name="0123456789ab", pid=ours, path=place.run(VM)) in everything
    assert {"run_directory", "state_directory"} <= {entry.kind for entry in everything}
    assert all(process.start_ticks(pid) is not None for pid in (ours, stray, bridge))


def _open_files(pid: int) -> set[Path]:
    """Name what a process has open; what it closes meanwhile may be missing."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(entry.readlink())
    return found
