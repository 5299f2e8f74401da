"""What callers wish of containers. A wish is stored, the reconciler carries it out, the caller waits for its end."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from cellmesh.hypervisor.domain.container import (
    MAX_CONTAINERS,
    Container,
    ContainerSpec,
    ContainerState,
    ContainerStatus,
)
from cellmesh.hypervisor.domain.errors import (
    ContainerNotFound,
    ContainerStartFailed,
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
from cellmesh.hypervisor.store import Intent, Reading, Store, Transaction
from cellmesh.image import ImageError, ImageStore

# While a VM is in one of these states a container that is wanted waits for it.
_COMING = frozenset({VmState.PENDING, VmState.STARTING, VmState.BACKOFF})


class Containers:
    """The containers of all VMs."""

    def __init__(self, *, store: Store, images: ImageStore, attempts: Attempts) -> None:
        self._store = store
        self._images = images
        self._attempts = attempts

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

    async def start(self, intent: Intent, vm_id: str, name: str, spec: ContainerSpec) -> Container:
        """Want a container, in a new generation, and wait until it runs; PENDING while its VM starts.

        Raises VmNotFound, VmNotRunning, VmDeleting, ImageNotFound, TooManyContainers, ContainerStartFailed,
        ProviderKeyPresent, GuestUnreachable, GuestMisbehaved, RequestIdReused.
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
                ingress_slot=max((other.ingress_slot + 1 for other in others), default=0),
                status=ContainerStatus(),
                create_time=tx.now,
                update_time=tx.now,
            )
            return await tx.save_container(new, None)

        generation = await self._wish(intent, vm_id, wish)
        return await self._started(vm_id, name, generation)

    async def restart(self, intent: Intent, vm_id: str, name: str) -> Container:
        """Want a container again as it was, in a new generation, and wait until it runs.

        Raises VmNotFound, VmNotRunning, VmDeleting, ContainerNotFound, ContainerStartFailed, GuestUnreachable,
        GuestMisbehaved, RequestIdReused.
        """

        async def wish(tx: Transaction) -> Container:
            before = await _container(tx, vm_id, name)
            return await tx.save_container(replace(before.next_generation(), wanted=True), before)

        generation = await self._wish(intent, vm_id, wish)
        return await self._started(vm_id, name, generation)

    async def stop(self, intent: Intent, vm_id: str, name: str) -> Container:
        """Want a container stopped and wait until it is.

        Raises VmNotFound, ContainerNotFound, GuestUnreachable, GuestMisbehaved, RequestIdReused.
        """

        async def wish(tx: Transaction) -> Container:
            before = await _container(tx, vm_id, name)
            wanted = replace(before, wanted=False)
            if wanted.epoch == 0:
                # No agent has it, so there is nobody to wait for.
                wanted = replace(wanted, status=replace(wanted.status, state=ContainerState.STOPPED))
            return await tx.save_container(wanted, before)

        generation = await self._wish(intent, vm_id, wish, stopping=True)
        return await self._stopped(vm_id, name, generation)

    def _has_image(self, digest: str) -> bool:
        try:
            self._images.container(digest)
        except ImageError:
            return False
        return True

    async def _wish(
        self,
        intent: Intent,
        vm_id: str,
        change: Callable[[Transaction], Awaitable[Container]],
        *,
        stopping: bool = False,
    ) -> int:
        """Store a wish and return the generation it is about; a repeated one waits for that same generation."""
        async with self._store.transaction() as tx:
            if (answer := await tx.answer(intent)) is not None:
                return int(json.loads(answer)["generation"])
            vm = await found(tx, vm_id)
            if vm.desired is DesiredState.DELETED:
                raise VmDeleting(vm_id)
            if not stopping and (vm.state not in _COMING | {VmState.RUNNING} or vm.desired is not DesiredState.RUNNING):
                raise VmNotRunning(vm_id, vm.state.name)
            container = await change(tx)
            await tx.put_answer(intent, json.dumps({"generation": container.generation}))
        return container.generation

    async def _started(self, vm_id: str, name: str, generation: int) -> Container:
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

    async def _stopped(self, vm_id: str, name: str, generation: int) -> Container:
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


async def _container(reading: Reading, vm_id: str, name: str) -> Container:
    container = await reading.container(vm_id, name)
    if container is None:
        raise ContainerNotFound(vm_id, name)
    return container


def _why_not(container: Container) -> ContainerStartFailed | ProviderKeyPresent:
    status = container.status
    said = status.message or f"it is {status.state.name} with exit code {status.exit_code}"
    if status.reason == ProviderKeyPresent.reason:
        return ProviderKeyPresent(f"Container {container.name} was not started: {said}")
    return ContainerStartFailed(
        f"Container {container.name} did not start: {said}; correct its image or spec and start it again.",
        metadata={"container_reason": status.reason} if status.reason else None,
    )
