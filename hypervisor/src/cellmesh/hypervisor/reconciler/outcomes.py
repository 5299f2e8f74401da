"""The transactions of a reconciler: each looks again before it writes, so that a wish that came between is not lost."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from cellmesh.hypervisor.domain.container import ContainerState, ContainerStatus
from cellmesh.hypervisor.domain.vm import DesiredState, Reason, Vm, VmState
from cellmesh.hypervisor.reconciler.world import World
from cellmesh.hypervisor.store import Transaction

_WAITING = frozenset({VmState.PENDING, VmState.BACKOFF})
_UP = frozenset({VmState.STARTING, VmState.RUNNING})


async def begin_epoch(world: World, vm_id: str) -> Vm | None:
    """Commit the next epoch and return the VM, STARTING; None if it is not to start, or has to wait for room."""
    async with world.store.transaction() as tx:
        vm = await tx.vm(vm_id)
        if vm is None or vm.desired is not DesiredState.RUNNING or vm.state not in _WAITING:
            return None
        if not await world.admission.fits(tx, vm):
            if vm.reason is not Reason.NODE_FULL:
                message = "The node has no memory to promise; it starts when another VM stops."
                await tx.save_vm(replace(vm, reason=Reason.NODE_FULL, message=message), vm)
            return None
        starting = replace(
            vm.move(VmState.STARTING),
            epoch=vm.epoch + 1,
            recycle_started=vm.recycle_wished,
            next_try_time=None,
            vmm_pid=0,
        )
        return await tx.save_vm(starting, vm)


async def put_pid(world: World, vm_id: str, epoch: int, pid: int) -> None:
    """Commit the process id of a VM's VMM."""
    async with world.store.transaction() as tx:
        vm = await tx.vm(vm_id)
        if vm is not None and vm.epoch == epoch:
            await tx.save_vm(replace(vm, vmm_pid=pid), vm)


async def move(
    world: World, vm_id: str, target: VmState, *, reason: Reason = Reason.NONE, message: str = ""
) -> Vm | None:
    """Commit a change of state and return the VM, or None if it is gone."""
    async with world.store.transaction() as tx:
        vm = await tx.vm(vm_id)
        if vm is None or vm.state is target:
            return vm
        return await tx.save_vm(vm.move(target, reason=reason, message=message), vm)


async def begin_again(world: World, vm_id: str) -> None:
    """Commit that a start was broken off by no fault of the VM's: it is PENDING again, and its policy is not asked."""
    async with world.store.transaction() as tx:
        vm = await tx.vm(vm_id)
        if vm is not None and vm.state is VmState.STARTING:
            await tx.save_vm(replace(vm.move(VmState.PENDING), vmm_pid=0), vm)


async def fail(world: World, vm_id: str, epoch: int, reason: Reason, message: str) -> None:
    """Commit the death of an epoch: BACKOFF while its policy allows another try, then FAILED. Nothing of it runs."""
    async with world.store.transaction() as tx:
        vm = await tx.vm(vm_id)
        if vm is None or vm.epoch != epoch or vm.state not in _UP:
            return
        await rest_containers(tx, vm_id)
        tries = max(vm.restart_count - _forgiven(vm, tx, world.timing.proven), 0) + 1
        policy = vm.spec.restart_policy
        if not policy.allows(tries):
            text = f"{message} It was restarted {tries - 1} times in a row; mend the cause, then start or recycle it."
            dead = replace(vm.move(VmState.FAILED, reason=reason, message=text), vmm_pid=0)
        else:
            wait = policy.delay(tries, world.jitter())
            text = f"{message} Restart {tries} of {policy.max_restarts} follows in {wait.total_seconds():.1f} s."
            waiting = vm.move(VmState.BACKOFF, reason=reason, message=text)
            dead = replace(waiting, restart_count=tries, next_try_time=tx.now + wait, vmm_pid=0)
        await tx.save_vm(dead, vm)


def _forgiven(vm: Vm, tx: Transaction, unit: timedelta) -> int:
    """Return how many earlier restarts a run makes up for: one for each `unit` that it lasted."""
    if vm.state is not VmState.RUNNING or vm.running_time is None:
        return 0
    return int((tx.now - vm.running_time) / unit)


async def come_to_rest(world: World, vm_id: str) -> None:
    """Commit that nothing of a stopping VM runs: STOPPED, or PENDING if it is wanted again."""
    async with world.store.transaction() as tx:
        vm = await tx.vm(vm_id)
        if vm is None or vm.state is not VmState.STOPPING:
            return
        await rest_containers(tx, vm_id)
        if vm.desired is DesiredState.RUNNING:
            reason = Reason.RECYCLED if vm.recycle_pending else Reason.NONE
            at_rest = vm.move(VmState.PENDING, reason=reason)
        else:
            at_rest = vm.move(VmState.STOPPED)
        await tx.save_vm(replace(at_rest, vmm_pid=0, restart_count=0), vm)


async def rest_containers(tx: Transaction, vm_id: str) -> None:
    """Note that no container of a VM runs: those that are wanted wait for its next start, in a new generation."""
    for container in await tx.containers(vm_id):
        if container.epoch == 0:
            continue
        if container.wanted:
            await tx.save_container(container.next_generation(), container)
        else:
            stopped = replace(container.status, state=ContainerState.STOPPED)
            await tx.save_container(replace(container, epoch=0, status=stopped), container)


async def forget(world: World, vm_id: str) -> None:
    """Commit that a deleted VM is gone with its data."""
    async with world.store.transaction() as tx:
        vm = await tx.vm(vm_id)
        if vm is not None and vm.state is VmState.DELETING:
            await tx.save_vm(replace(vm.move(VmState.DELETED), vmm_pid=0), vm)


async def put_status(
    world: World,
    vm_id: str,
    name: str,
    *,
    generation: int,
    epoch: int,
    status: ContainerStatus,
    only_from: ContainerState | None = None,
) -> bool:
    """Commit how a container is; False if generation, epoch or, with `only_from`, its state are others by now."""
    async with world.store.transaction() as tx:
        vm, container = await tx.vm(vm_id), await tx.container(vm_id, name)
        if vm is None or vm.epoch != epoch or vm.state is not VmState.RUNNING:
            return False
        if container is None or container.generation != generation:
            return False
        if only_from is not None and container.status.state is not only_from:
            return False
        await tx.save_container(replace(container, epoch=epoch, status=status), container)
        return True
