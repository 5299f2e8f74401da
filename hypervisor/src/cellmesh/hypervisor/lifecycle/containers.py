"""What callers wish of containers. A wish is stored with its answer, then the reconciler carries it out.

An intent makes its answer of the container as it was stored; whoever asked waits with `started` or `stopped` until the
generation in that answer is as they wished.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from cellmesh.hypervisor.domain import audit
from cellmesh.hypervisor.domain.container import (
    MAX_CONTAINERS,
    Container,
    ContainerSpec,
    ContainerState,
    ContainerStatus,
)
from cellmesh.hypervisor.domain.errors import (
    ContainerChanged,
    ContainerNotFound,
    ContainerRouted,
    ContainerRunning,
    ContainerStartFailed,
    DataDiskFull,
    ImageNotFound,
    ProviderKeyPresent,
    TooManyContainers,
    VmDeleting,
    VmNotRunning,
)
from cellmesh.hypervisor.domain.route import route_of_container
from cellmesh.hypervisor.domain.vm import DesiredState, Vm, VmId, VmState
from cellmesh.hypervisor.lifecycle.attempts import Attempts
from cellmesh.hypervisor.lifecycle.vms import found
from cellmesh.hypervisor.store import Reading, Store, Transaction
from cellmesh.image import ImageError, ImageStore
from cellmesh.service.intent import Answer, Intent
from cellmesh.service.store import NO_FACTS, Action, Facts

# While a VM is in one of these states a container that is wanted waits for it.
_COMING = frozenset({VmState.PENDING, VmState.STARTING, VmState.BACKOFF})


class Remover(Protocol):
    """The agents of VMs, as far as a deletion asks them. Raises MeshError."""

    async def remove_container(self, vm_id: str, epoch: int, name: str, *, persistent: bool) -> None:
        """Remove the files and the output of a stopped container; one that is not there is removed already."""


class Containers:
    """The containers of all VMs."""

    def __init__(
        self,
        *,
        store: Store,
        images: ImageStore,
        attempts: Attempts,
        guests: Remover,
        failpoint: Callable[[str], None],
    ) -> None:
        self._guests = guests
        self._store = store
        self._images = images
        self._attempts = attempts
        self._failpoint = failpoint

    async def get(self, vm_id: str, name: str) -> Container:
        """Return the container. Raises VmNotFound, ContainerNotFound."""
        async with self._store.reading() as reading:
            await found(reading, vm_id)
            return await _container(reading, vm_id, name)

    async def list(self, vm_id: str) -> Sequence[Container]:
        """Return the containers of a VM, by name; VmNotFound if there is no such VM."""
        async with self._store.reading() as reading:
            await found(reading, vm_id)
            return await reading.containers(vm_id)

    async def running_vm(self, vm_id: str, name: str) -> Vm:
        """Return the VM of a container, RUNNING. Raises VmNotFound, VmNotRunning, ContainerNotFound."""
        async with self._store.reading() as reading:
            vm = await found(reading, vm_id)
            await _container(reading, vm_id, name)
        if vm.state is not VmState.RUNNING:
            raise VmNotRunning(vm_id, vm.state.name)
        return vm

    async def audit_exec(self, vm_id: str, name: str, exec_id: str) -> None:
        """Write down that somebody opens a command in a container. Raises StoreUnavailable: then it is not opened."""
        async with self._store.transaction() as tx:
            await tx.audit(audit.OPEN_EXEC, resource=audit.container_resource(vm_id, name), facts={"exec_id": exec_id})

    async def start(self, intent: Intent[Answer], vm_id: str, name: str, spec: ContainerSpec) -> Answer:
        """Want a container, in a new generation.

        Raises VmNotFound, VmNotRunning, VmDeleting, ImageNotFound, TooManyContainers, RequestIdReused.
        """
        known = self._has_image(spec.image)

        async def wish(tx: Transaction) -> Container:
            if not known:
                raise ImageNotFound(f"The node has no container image {spec.image}; import it there first.")
            before = await tx.container(vm_id, name)
            if before is not None:
                wanted = replace(before.next_generation(), spec=spec, wanted=True)
                return await tx.save_container(wanted, before)
            others = await tx.containers(vm_id)
            if len(others) >= MAX_CONTAINERS:
                raise TooManyContainers(vm_id, MAX_CONTAINERS)
            route = route_of_container(VmId(vm_id), name, tx.now)
            if route is not None:
                await tx.add_routes([route])
            new = Container(
                vm_id=VmId(vm_id),
                name=name,
                spec=spec,
                wanted=True,
                generation=1,
                epoch=0,
                ingress_slot=min(set(range(MAX_CONTAINERS)) - {other.ingress_slot for other in others}),
                status=ContainerStatus(),
                create_time=tx.now,
                update_time=tx.now,
            )
            return await tx.save_container(new, None)

        return await self._wish(intent, vm_id, wish, audit.START_CONTAINER, facts={"image": spec.image})

    async def restart(self, intent: Intent[Answer], vm_id: str, name: str) -> Answer:
        """Want a container again as it was, in a new generation.

        Raises VmNotFound, VmNotRunning, VmDeleting, ContainerNotFound, RequestIdReused.
        """

        async def wish(tx: Transaction) -> Container:
            before = await _container(tx, vm_id, name)
            return await tx.save_container(replace(before.next_generation(), wanted=True), before)

        return await self._wish(intent, vm_id, wish, audit.RESTART_CONTAINER)

    async def stop(self, intent: Intent[Answer], vm_id: str, name: str) -> Answer:
        """Want a container stopped. Raises VmNotFound, VmDeleting, ContainerNotFound, RequestIdReused."""

        async def wish(tx: Transaction) -> Container:
            before = await _container(tx, vm_id, name)
            return await tx.save_container(_unwanted(before), before)

        return await self._wish(intent, vm_id, wish, audit.STOP_CONTAINER, stopping=True)

    async def delete(self, intent: Intent[Answer], vm_id: str, name: str, *, force: bool, persistent: bool) -> Answer:
        """Delete a container of a RUNNING VM with its layers, and with its lasting directories if `persistent`.

        Raises VmNotFound, VmNotRunning, VmDeleting, ContainerNotFound, ContainerRunning, ContainerRouted,
        ContainerChanged, DataDiskFull, GuestUnreachable, GuestMisbehaved, RequestIdReused.
        """
        async with self._store.transaction() as tx:
            if (answer := await tx.answered(intent)) is not None:
                return answer
            _, container = await _deletable(tx, vm_id, name)
            if container.wanted and not force:
                raise ContainerRunning(name, container.status.state.name)
            stopping = await tx.save_container(_unwanted(container), container)
            await _audit(tx, audit.STOP_CONTAINER, stopping)
        self._failpoint("remove.wish_committed")
        await self.stopped(vm_id, name, stopping.generation)
        vm, stopped = await self._look(vm_id, name)
        if vm.state is not VmState.RUNNING:
            raise VmNotRunning(vm_id, vm.state.name)
        if stopped.generation != stopping.generation or not stopped.is_over:
            raise ContainerChanged(name)
        await self._guests.remove_container(vm_id, vm.epoch, name, persistent=persistent)
        self._failpoint("remove.files_removed")
        async with self._store.transaction() as tx:
            _, container = await _deletable(tx, vm_id, name)
            if container.generation != stopping.generation or not container.is_over:
                raise ContainerChanged(name)
            own = route_of_container(VmId(vm_id), name, tx.now)
            for route in await tx.routes(vm_id):
                if own is not None and route.prefix == own.prefix:
                    await tx.delete_route(route)
            await tx.delete_container(container, persistent_paths=persistent)
            await _audit(tx, audit.DELETE_CONTAINER, container, {"persistent_paths": persistent})
            answer = await tx.answer(intent, container)
        self._failpoint("remove.committed")
        self._attempts.forget(vm_id, name)
        return answer

    def _has_image(self, digest: str) -> bool:
        try:
            self._images.container(digest)
        except ImageError:
            return False
        return True

    async def _wish(
        self,
        intent: Intent[Answer],
        vm_id: str,
        change: Callable[[Transaction], Awaitable[Container]],
        action: Action,
        *,
        stopping: bool = False,
        facts: Facts = NO_FACTS,
    ) -> Answer:
        async with self._store.transaction() as tx:
            if (answer := await tx.answered(intent)) is not None:
                return answer
            vm = await found(tx, vm_id)
            if vm.desired is DesiredState.DELETED:
                raise VmDeleting(vm_id)
            if not stopping and (vm.state not in _COMING | {VmState.RUNNING} or vm.desired is not DesiredState.RUNNING):
                raise VmNotRunning(vm_id, vm.state.name)
            container = await change(tx)
            await _audit(tx, action, container, facts)
            return await tx.answer(intent, container)

    async def started(self, vm_id: str, name: str, generation: int) -> Container:
        """Return a container once it runs in a generation or a later one; PENDING while its VM starts.

        Raises VmNotFound, ContainerNotFound, ContainerStartFailed, DataDiskFull, ProviderKeyPresent, GuestUnreachable,
        GuestMisbehaved.
        """
        with self._store.changes.watched(vm_id) as changed:
            while True:
                changed.clear()
                vm, container = await self._look(vm_id, name)
                # One that ran and has been given up since was started: how it fared is in its status.
                never_ran = container.status.state is ContainerState.FAILED and container.status.start_time is None
                if container.generation == generation and never_ran:
                    raise _why_not(container)
                if container.generation != generation or not container.needs_start or vm.state is not VmState.RUNNING:
                    return container
                if (error := self._attempts.error(vm_id, name, generation)) is not None:
                    raise error
                await changed.wait()

    async def stopped(self, vm_id: str, name: str, generation: int) -> Container:
        """Return a container once it has stopped in a generation, or there is a later one.

        Raises VmNotFound, ContainerNotFound, GuestUnreachable, GuestMisbehaved.
        """
        with self._store.changes.watched(vm_id) as changed:
            while True:
                changed.clear()
                vm, container = await self._look(vm_id, name)
                if container.generation != generation or not container.needs_stop or vm.state is not VmState.RUNNING:
                    return container
                if (error := self._attempts.error(vm_id, name, generation)) is not None:
                    raise error
                await changed.wait()

    async def _look(self, vm_id: str, name: str) -> tuple[Vm, Container]:
        async with self._store.reading() as reading:
            return await found(reading, vm_id), await _container(reading, vm_id, name)


async def _audit(tx: Transaction, action: Action, container: Container, facts: Facts = NO_FACTS) -> None:
    resource = audit.container_resource(container.vm_id, container.name)
    await tx.audit(action, resource=resource, facts={**facts, "generation": container.generation})


async def _container(reading: Reading, vm_id: str, name: str) -> Container:
    container = await reading.container(vm_id, name)
    if container is None:
        raise ContainerNotFound(vm_id, name)
    return container


def _unwanted(container: Container) -> Container:
    """Return a container as one to be stopped; one that no agent has is stopped."""
    if container.epoch == 0:
        stopped = replace(container.status, state=ContainerState.STOPPED)
        return replace(container, wanted=False, status=stopped)
    return replace(container, wanted=False)


async def _deletable(reading: Reading, vm_id: str, name: str) -> tuple[Vm, Container]:
    """Return a container and its VM, RUNNING, if no route but its own leads to it."""
    vm = await found(reading, vm_id)
    if vm.desired is DesiredState.DELETED:
        raise VmDeleting(vm_id)
    if vm.state is not VmState.RUNNING:
        raise VmNotRunning(vm_id, vm.state.name)
    container = await _container(reading, vm_id, name)
    own = route_of_container(VmId(vm_id), name, container.create_time)
    for route in await reading.routes(vm_id):
        if route.target.container == name and (own is None or route.prefix != own.prefix):
            raise ContainerRouted(name, route.prefix)
    return vm, container


def _why_not(container: Container) -> ContainerStartFailed | DataDiskFull | ProviderKeyPresent:
    status = container.status
    said = status.message or f"it is {status.state.name} with exit code {status.exit_code}"
    if status.reason == ProviderKeyPresent.reason:
        return ProviderKeyPresent(f"Container {container.name} was not started: {said}")
    if status.reason == DataDiskFull.reason:
        return DataDiskFull(f"Container {container.name} was not started: {said}.")
    return ContainerStartFailed(
        f"Container {container.name} did not start: {said}; correct its image or spec and start it again.",
        metadata={"container_reason": status.reason} if status.reason else None,
    )
