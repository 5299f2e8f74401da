"""Stopping a VM, gentlest first. The agent's own Shutdown is the rung below these and belongs to the caller."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

from cellmesh.hypervisor.vmm import process
from cellmesh.hypervisor.vmm.api import Api
from cellmesh.hypervisor.vmm.errors import StopUnfinished, VmmError, VmmUnreachable
from cellmesh.hypervisor.vmm.liveness import Watch, usable
from cellmesh.hypervisor.vmm.model import Budgets, Handle, Rung


async def climb(handle: Handle, *, until: Rung, budgets: Budgets, failpoint: Callable[[str], None]) -> None:
    """Climb the rungs until the process is gone. Raises StopUnfinished if it outlives the last allowed one.

    vm.shutdown ends the VM and not its VMM, and a VMM closes its API before it is gone: only the pidfd tells.
    """
    api = Api.of(handle)

    async def press() -> None:
        await api.power_button()
        failpoint("stop.power_button")

    rungs: list[tuple[Rung, float, Callable[[], Awaitable[None]]]] = [
        (Rung.POWER_BUTTON, budgets.power_button, press),
        (Rung.VM_SHUTDOWN, 0.0, lambda: api.shutdown_vm(seconds=budgets.vm_shutdown)),
        (Rung.VMM_SHUTDOWN, budgets.vmm_shutdown, lambda: api.shutdown_vmm(seconds=budgets.vmm_shutdown)),
        (Rung.SIGTERM, budgets.sigterm, lambda: _signal(handle, signal.SIGTERM)),
        (Rung.SIGKILL, budgets.sigkill, lambda: _signal(handle, signal.SIGKILL)),
    ]
    for rung, seconds, act in rungs:
        if rung > until:
            break
        if await _step(handle, act, seconds):
            failpoint("stop.vmm_exited")
            return
    raise StopUnfinished(f"Process {handle.pid} of VM {handle.vm_id} outlived {until.name}; allow a harder rung.")


async def _step(handle: Handle, act: Callable[[], Awaitable[None]], seconds: float) -> bool:
    """Do one rung and say whether the process is gone. What was refused or not answered in time is not waited for."""
    try:
        await act()
    except VmmUnreachable:
        pass  # a VMM that goes may close its API before it answers
    except VmmError:
        seconds = 0.0
    try:
        async with usable(seconds, Watch.of(handle.pid)):
            return await process.wait(handle.pid, handle.start_ticks)
    except TimeoutError:
        return False


async def _signal(handle: Handle, number: signal.Signals) -> None:
    process.send_signal(handle.pid, handle.start_ticks, number)
