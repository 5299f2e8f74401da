"""Starts and stops the containers of one running VM, each in a task of its own, one try at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace

import structlog

from cellmesh.hypervisor.domain.container import Container, ContainerState, ContainerStatus
from cellmesh.hypervisor.domain.errors import (
    ContainerNotFound,
    ContainerStartFailed,
    DataDiskFull,
    GuestUnreachable,
    ProviderKeyPresent,
)
from cellmesh.hypervisor.reconciler import outcomes
from cellmesh.hypervisor.reconciler.images import ImageDisks
from cellmesh.hypervisor.reconciler.ingress import Ingress
from cellmesh.hypervisor.reconciler.world import World
from cellmesh.hypervisor.vmm import Handle, VmmError
from cellmesh.image import ImageError
from cellmesh.mesh.errors import InternalError, MeshError

_LONGEST_WAIT = 30.0
_log = structlog.get_logger()


class ContainerReconciler:
    """The containers of one boot of one VM. Tasks live in `tasks` and never raise."""

    def __init__(
        self, world: World, tasks: asyncio.TaskGroup, handle: Handle, ingress: Ingress, *, images: ImageDisks
    ) -> None:
        self._world = world
        self._tasks = tasks
        self._handle = handle
        self._ingress = ingress
        self._images = images
        self._tries: dict[str, asyncio.Task[None]] = {}
        self._not_before: dict[str, float] = {}

    def reconcile(self, containers: Iterable[Container]) -> float | None:
        """Begin what is to be done; return the seconds until there is more, or None."""
        waits: list[float] = []
        containers = list(containers)
        for container in containers:
            name = container.name
            if not (container.needs_start or container.needs_stop):
                self._not_before.pop(name, None)
            elif name not in self._tries:
                wait = self._not_before.get(name, 0.0) - time.monotonic()
                if wait > 0 and self._world.attempts.count(container.vm_id, name, container.generation):
                    waits.append(wait)
                else:
                    self._tries[name] = self._tasks.create_task(self._try(container), name=f"container {name}")
        # A try may be about an image that no container is made of any more.
        if not self._tries and (wait_of_images := self._images.detach_unused({c.spec.image for c in containers})):
            waits.append(wait_of_images)
        return min(waits, default=None)

    async def cancel(self) -> None:
        """Give up all tries and wait until none runs."""
        tries = list(self._tries.values())
        for task in tries:
            task.cancel()
        await asyncio.gather(*tries, return_exceptions=True)
        await self._images.cancel()

    async def _try(self, container: Container) -> None:
        attempts = self._world.attempts
        try:
            if container.needs_start:
                await self._start(container)
            else:
                await self._stop(container)
            attempts.forget(container.vm_id, container.name)
        except Exception as error:
            # Whatever it is, it must not end the keeper of the VM; who waits is told, and it is tried again.
            failures = attempts.count(container.vm_id, container.name, container.generation)
            self._not_before[container.name] = time.monotonic() + min(2.0**failures, _LONGEST_WAIT)
            reported = error if isinstance(error, MeshError) else _told(container, error)
            attempts.failed(container.vm_id, container.name, container.generation, reported)
            _log.warning("container.try_failed", vm_id=container.vm_id, container=container.name, exc_info=error)
        finally:
            del self._tries[container.name]
            self._world.store.changes.notify({container.vm_id})

    async def _start(self, container: Container) -> None:
        starting = replace(container.status, state=ContainerState.STARTING)
        if not await self._put(container, starting):
            return
        self._world.failpoint("container.starting_committed")
        try:
            # Before its agent hears of it, so that it is never RUNNING and out of reach; the one before it is left.
            await self._ingress.ensure()
            await self._images.attach(container.spec.image)
            status = await self._world.guests.start_container(self._handle.epoch, container)
        except (ContainerStartFailed, DataDiskFull, ProviderKeyPresent) as error:
            status = ContainerStatus(state=ContainerState.FAILED, reason=error.reason, message=error.message)
        except ImageError as error:
            status = ContainerStatus(state=ContainerState.FAILED, reason="IMAGE_NOT_FOUND", message=str(error))
        # What was reported since is newer than the answer: of a process that ended at once it may have overtaken it.
        await self._put(container, status, only_from=ContainerState.STARTING)

    async def _stop(self, container: Container) -> None:
        # No request is to come in any more when its process is told to end.
        await self._world.edge.settled(container.vm_id)
        try:
            status = await self._world.guests.stop_container(self._handle.epoch, container)
        except ContainerNotFound:
            status = replace(container.status, state=ContainerState.STOPPED)
        await self._put(container, status)

    async def _put(
        self, container: Container, status: ContainerStatus, *, only_from: ContainerState | None = None
    ) -> bool:
        return await outcomes.put_status(
            self._world,
            container.vm_id,
            container.name,
            generation=container.generation,
            epoch=self._handle.epoch,
            status=status,
            only_from=only_from,
        )


def _told(container: Container, error: Exception) -> MeshError:
    if not isinstance(error, (VmmError, OSError)):
        return InternalError(f"Container {container.name} could not be started by a fault of ours; it is tried again.")
    return GuestUnreachable(
        f"Container {container.name} could not be given its disk or its socket ({error}); it is tried again."
    )
