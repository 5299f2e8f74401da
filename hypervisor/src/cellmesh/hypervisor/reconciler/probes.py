"""The probes of a VM's layers, as the processes and agents of this node answer them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

from cellmesh.hypervisor.domain.container import Claim
from cellmesh.hypervisor.domain.vm import Vm
from cellmesh.hypervisor.lifecycle.health import ProbeFailed, Probes
from cellmesh.hypervisor.reconciler.world import World
from cellmesh.hypervisor.vmm import Handle, VmmError, VmState
from cellmesh.hypervisor.vmm.process import is_alive


def probes(world: World, claims: Callable[[str, int, timedelta], Awaitable[Sequence[Claim]]]) -> Probes:
    """Return the probes; `claims` asks an agent for its containers."""

    def handle_of(vm: Vm) -> Handle:
        handle = world.handles.get(vm.vm_id)
        if handle is None or handle.epoch != vm.epoch:
            raise ProbeFailed("No VMM runs for this epoch; the VM is being restarted, or is quarantined.")
        return handle

    async def process(vm: Vm) -> None:
        handle = handle_of(vm)
        if not is_alive(handle.pid, handle.start_ticks):
            raise ProbeFailed(f"The VMM's process {handle.pid} is gone; the VM restarts by its policy.")

    async def api(vm: Vm) -> None:
        try:
            probe = await world.vmm.probe(handle_of(vm))
        except VmmError as error:
            raise ProbeFailed(f"The VMM's API does not answer: {error}") from error
        if probe.state is not VmState.RUNNING:
            raise ProbeFailed(f"The VMM says the VM is {probe.state.value}; recycle it.")

    async def agent(vm: Vm, within: timedelta) -> Sequence[Claim]:
        return await claims(vm.vm_id, vm.epoch, within)

    return Probes(process=process, api=api, agent=agent)
