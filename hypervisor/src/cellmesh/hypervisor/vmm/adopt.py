"""Finding a VM's process again after a restart of the hypervisor. Nothing is killed here, whatever is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cellmesh.hypervisor.vmm import handle_file, process, sweep
from cellmesh.hypervisor.vmm.api import Api
from cellmesh.hypervisor.vmm.errors import VmmError, VmmInvalid, VmmUnreachable
from cellmesh.hypervisor.vmm.model import Adoption, Doubtful, Gone, Handle, Running, VmState

_END_SECONDS = 10.0
_ALIVE = frozenset({VmState.RUNNING, VmState.PAUSED, VmState.BREAKPOINT})


def identify(path: Path, run: Path) -> Handle | Gone | Doubtful:
    """Return the handle of the VM's certainly own and live process, or why there is none. Blocks on /proc."""
    try:
        known = handle_file.read(path)
    except VmmInvalid as error:
        return Doubtful(reason="handle_unreadable", message=str(error))
    found = sweep.vmm_processes(run)
    if known is None:
        return _unknown(found, run)
    if known.directory != run:
        return Doubtful(reason="handle_unreadable", message=f"The handle {path} names {known.directory}, not {run}.")
    if known.host_boot_id != process.boot_id():
        return Gone(reason="rebooted")
    if known.pid == 0:
        return _intended(known, found)
    ticks = process.start_ticks(known.pid)
    if ticks is None or ticks != known.start_ticks:
        return _other(found, run) or Gone(reason="exited" if ticks is None else "pid_reused")
    if known.pid not in found and process.argv(known.pid):
        message = f"Process {known.pid} is the one started for the VM, but its arguments do not name {run}."
        return Doubtful(reason="not_ours", message=message)
    return known


async def settle(known: Handle) -> Adoption:
    """Ask the identified process whether its VM runs."""
    try:
        info = await Api.of(known).info()
    except VmmError as error:
        # One that ends closes its API, and loses its arguments, before it is gone; one that hangs keeps both.
        ends = isinstance(error, VmmUnreachable) or not process.argv(known.pid)
        if await process.wait(known.pid, known.start_ticks, seconds=_END_SECONDS if ends else 0.0):
            return Gone(reason="exited")
        return Doubtful(reason="unresponsive", message=str(error), handle=known)
    if info.state in _ALIVE:
        return Running(handle=known)
    message = f"Process {known.pid} runs, but its VM is in state {info.state.value}."
    return Doubtful(reason="not_booted", message=message, handle=known)


def _intended(known: Handle, found: list[int]) -> Handle | Gone | Doubtful:
    """Find by its arguments the process whose pid the hypervisor did not live to write down."""
    if not found:
        return Gone(reason="never_started")
    if len(found) > 1:
        return Doubtful(reason="several", message=f"Processes {found} all run the VM's directory.")
    ticks = process.start_ticks(found[0])
    return replace(known, pid=found[0], start_ticks=ticks) if ticks is not None else Gone(reason="exited")


def _unknown(found: list[int], run: Path) -> Gone | Doubtful:
    return _other(found, run) or Gone(reason="never_started")


def _other(found: list[int], run: Path) -> Doubtful | None:
    # Some of them may have died since they were found, as the VM's own has.
    alive = [pid for pid in found if process.start_ticks(pid) is not None]
    if not alive:
        return None
    return Doubtful(reason="not_ours", message=f"Processes {alive} run {run}, but no handle names them.")
