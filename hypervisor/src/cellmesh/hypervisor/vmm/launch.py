"""Starting one VM: handle, bridge, VMM, create, boot; and nothing of it left when a step fails."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cellmesh.hypervisor.vmm import bridges, disks, handle_file, layout, process, sweep
from cellmesh.hypervisor.vmm.api import QUICK, Api
from cellmesh.hypervisor.vmm.cgroup import Cgroups
from cellmesh.hypervisor.vmm.errors import LaunchFailed, StillRunning, VmmTimeout, VmmUnreachable, shown
from cellmesh.hypervisor.vmm.layout import Layout
from cellmesh.hypervisor.vmm.liveness import Silence, Watch
from cellmesh.hypervisor.vmm.model import Cell, Disk, Handle

_API_SECONDS = 30.0  # half a second is usual
_KILL_SECONDS = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.25
_FILE_ROOM = 1 << 30
_LOG_SHOWN = 2048


@dataclass(slots=True)
class _Attempt:
    """One start, as far as it came: what must be undone when the next step fails."""

    handle: Handle


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """Starts VMs with one binary on one host."""

    binary: Path
    layout: Layout
    separate: bool
    """Whether each VM gets a uid of its own."""
    cgroups: Cgroups
    failpoint: Callable[[str], None]

    async def launch(self, cell: Cell, *, uid: int) -> Handle:
        """Start a VM and return its handle when it has booted (its guest may not be up yet).

        Raises StillRunning, DiskRefused, LaunchFailed, BridgeFailed or what the VMM answered.
        """
        run = self.layout.run(cell.vm_id)
        await asyncio.to_thread(self._check, cell, run)
        intent = Handle(
            vm_id=cell.vm_id,
            epoch=cell.epoch,
            pid=0,
            start_ticks=0,
            host_boot_id=process.boot_id(),
            uid=uid,
            bridge_pid=0,
            bridge_start_ticks=0,
            directory=run,
            created=datetime.now(UTC),
        )
        attempt = _Attempt(intent)
        try:
            await self._steps(cell, attempt)
        except BaseException:
            await self._undo(attempt.handle)
            raise
        return attempt.handle

    async def _steps(self, cell: Cell, attempt: _Attempt) -> None:
        run = attempt.handle.directory
        await asyncio.to_thread(layout.clear_stale, run)
        await self._write(attempt.handle)
        self.failpoint("launch.handle_written")
        pid, ticks = await bridges.start(run, uid=attempt.handle.uid)
        attempt.handle = replace(attempt.handle, bridge_pid=pid, bridge_start_ticks=ticks)
        await bridges.listen(attempt.handle, f"agent.{cell.epoch}", layout.AGENT_PORT)
        self.failpoint("launch.bridge_started")
        self._start_vmm(cell, attempt)
        self.failpoint("launch.vmm_forked")
        await self._write(attempt.handle)
        api = Api.of(attempt.handle)
        await _answers(api, attempt.handle)
        self.failpoint("launch.vmm_started")
        await api.create(cell, run)
        self.failpoint("launch.vm_created")
        await api.boot()
        self.failpoint("launch.vm_booted")

    def _start_vmm(self, cell: Cell, attempt: _Attempt) -> None:
        run, uid = attempt.handle.directory, attempt.handle.uid
        pid = process.start(process.confined(self._command(run), self._privileges(cell, uid)), cwd=run)
        ticks = process.start_ticks(pid)
        attempt.handle = replace(attempt.handle, pid=pid, start_ticks=ticks or 0)
        if ticks is None:
            raise LaunchFailed(f"cloud-hypervisor ended at once: {_log(run)}")
        self.cgroups.confine(run.name, pid, memory_bytes=cell.memory_bytes, vcpus=cell.vcpus)

    def _command(self, run: Path) -> list[str]:
        return [
            str(self.binary),
            *(sweep.API_FLAG, f"path={run / 'api.sock'}"),
            *("--event-monitor", f"path={run / 'events.json'}"),
            *("--log-file", str(run / "vmm.log")),
            *("--seccomp", "true"),
        ]

    def _privileges(self, cell: Cell, uid: int) -> process.Privileges:
        largest = max([cell.memory_bytes, *(disk.path.stat().st_size for disk in cell.disks)])
        group = kvm_group()
        return process.Privileges(
            uid=uid,
            separate=self.separate,
            groups=() if group is None else (group,),
            file_bytes=largest + _FILE_ROOM,
        )

    def _check(self, cell: Cell, run: Path) -> None:
        if found := sweep.vmm_processes(run):
            raise StillRunning(cell.vm_id, found[0])
        for path in (cell.kernel, cell.initramfs):
            disks.check(Disk(path=path, serial="payload", readonly=True))
        for disk in cell.disks:
            disks.check(disk)

    async def _write(self, current: Handle) -> None:
        await asyncio.to_thread(handle_file.write, self.layout.handle(current.vm_id), current)

    async def _undo(self, reached: Handle) -> None:
        run = reached.directory
        if reached.pid:
            process.send_signal(reached.pid, reached.start_ticks, signal.SIGKILL)
            await process.wait(reached.pid, reached.start_ticks, seconds=_KILL_SECONDS)
            process.reap(reached.pid)
        await bridges.end_all(run)
        self.cgroups.remove(run.name)
        self.layout.handle(reached.vm_id).unlink(missing_ok=True)
        await asyncio.to_thread(layout.clear_stale, run)


async def _answers(api: Api, current: Handle) -> None:
    """Wait until the VMM's API answers; its socket appears some milliseconds after the process."""
    silence, pause = Silence(Watch.of(current.pid), limit=_API_SECONDS), _FIRST_PAUSE
    while process.is_alive(current.pid, current.start_ticks):
        begun = time.monotonic()
        try:
            await api.ping()
        except (VmmUnreachable, VmmTimeout):
            await asyncio.sleep(pause)
            dead = silence.unanswered(took=time.monotonic() - begun, within=QUICK + pause)
            if dead is not None:
                raise LaunchFailed(f"cloud-hypervisor's API is silent. {dead}") from None
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return
    raise LaunchFailed(f"cloud-hypervisor ended before it answered: {_log(current.directory)}")


def kvm_group() -> int | None:
    """Return the group that may use /dev/kvm; None if there is none, and never root's group."""
    try:
        found = Path("/dev/kvm").stat()
    except FileNotFoundError:
        return None
    return found.st_gid if found.st_gid and found.st_mode & 0o060 == 0o060 else None


def _log(run: Path) -> str:
    """Return the end of the VMM's own log, escaped, for a message."""
    try:
        descriptor = os.open(run / "vmm.log", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return "it wrote no log"
    try:
        size = os.fstat(descriptor).st_size
        return shown(os.pread(descriptor, _LOG_SHOWN, max(0, size - _LOG_SHOWN))) or "its log is empty"
    finally:
        os.close(descriptor)
