"""All containers of this cell, by name."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cellmesh.guest.changes import Changes
from cellmesh.guest.containers import container as life
from cellmesh.guest.containers import ingress as way_in
from cellmesh.guest.containers import logs as output
from cellmesh.guest.containers import runtime as running
from cellmesh.guest.containers.slots import MAX_CONTAINERS, NoSlot, Slots
from cellmesh.guest.errors import (
    ContainerNotFound,
    ContainerNotRunning,
    ContainerRunning,
    DataDiskFailed,
    DataDiskFull,
    ImageInUse,
    OldGeneration,
    TooManyContainers,
)

if TYPE_CHECKING:
    from cellmesh.guest.containers.container import Container
    from cellmesh.guest.containers.ingress import Listen
    from cellmesh.guest.containers.logs import Logs
    from cellmesh.guest.containers.model import ContainerSpec, ContainerStatus
    from cellmesh.guest.containers.runtime import RunningContainer, Runtime

# States that nothing follows; `model`, which has them, is a module that a boot does without.
_LAST_STATES = frozenset({"STOPPED", "FAILED"})


class Containers:
    """Starts, replaces and stops containers; their lives are tasks of `group`; each asks for the `runtime`.

    `listen` opens a port to the host for each.
    """

    def __init__(
        self,
        *,
        runtime: Callable[[], Runtime],
        slots: Slots,
        listen: Listen,
        random: Callable[[], float],
        group: asyncio.TaskGroup,
    ) -> None:
        self._slots = slots
        self._group = group
        self._containers: dict[str, Container] = {}
        self._logs: dict[str, Logs] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.changes = Changes()
        self._runtime = runtime
        self._listen = listen
        self._random = random

    @property
    def dropped_log_bytes(self) -> int:
        """Log bytes dropped that nobody had read, in all."""
        return sum(logs.dropped_unread for logs in self._logs.values())

    def statuses(self) -> list[ContainerStatus]:
        """Return every container as it is, by name."""
        return [self._containers[name].status for name in sorted(self._containers)]

    async def start(self, name: str, generation: int, spec: ContainerSpec, ingress_port: int) -> ContainerStatus:
        """Start a generation and wait until its process runs; the same one twice is one start. Raises GuestError."""
        async with self._locks[name]:
            container = await self._current_or_new(name, generation, spec, ingress_port)
        return await container.started()

    async def _current_or_new(self, name: str, generation: int, spec: ContainerSpec, ingress_port: int) -> Container:
        current = self._containers.get(name)
        if current is not None:
            newest = current.status.generation
            if generation < newest:
                raise OldGeneration(f"generation {generation} of {name} is past: generation {newest} was started")
            if generation == newest:
                return current
            current.request_stop()
            await current.ended()
        elif len(self._containers) >= MAX_CONTAINERS:
            raise TooManyContainers(f"a VM has room for {MAX_CONTAINERS} containers")
        container = self._create(name, generation, spec, ingress_port)
        self._containers[name] = container
        self._group.create_task(container.run(), name=f"container {name} {generation}")
        return container

    def _create(self, name: str, generation: int, spec: ContainerSpec, ingress_port: int) -> Container:
        try:
            with _data_disk(f"container {name}"):
                slot = self._slots.slot(name)
        except NoSlot as error:
            raise TooManyContainers(str(error)) from error
        ring = self._logs.setdefault(name, output.Logs()).open(generation)
        surroundings = life.Surroundings(runtime=self._runtime(), changed=self.changes.notify, random=self._random)
        return life.Container(
            name=name,
            generation=generation,
            slot=slot,
            spec=spec,
            ring=ring,
            ingress=way_in.Ingress(ingress_port, spec.http_port, self._listen),
            surroundings=surroundings,
        )

    async def stop(self, name: str) -> ContainerStatus:
        """Stop a container and wait until it is stopped; raises ContainerNotFound."""
        container = self.find(name)
        container.request_stop()
        return await container.ended()

    async def remove(self, name: str, *, persistent: bool) -> None:
        """Forget a stopped container with its layers and its output, and with `persistent` its lasting directories.

        One that is not there is removed already; files that an earlier boot left are removed. Raises
        ContainerRunning, DataDiskFull and DataDiskFailed.
        """
        async with self._locks[name]:
            container = self._containers.get(name)
            if container is not None and not container.over:
                if container.status.state.name not in _LAST_STATES:
                    raise ContainerRunning(f"container {name} is {container.status.state.name}: stop it first")
                await container.ended()  # It reports its end a moment before it has let go of its files.
            with _data_disk(f"container {name}"):
                empty = await self._runtime().remove(name, persistent=persistent)
                if empty:
                    self._slots.free(name)
            self._containers.pop(name, None)
            self._logs.pop(name, None)
            self.changes.notify()

    async def release_image(self, serial: str) -> None:
        """Let go of the disk with this serial; one that is not in use is fine. Raises ImageInUse."""
        users = (name for name, each in self._containers.items() if each.spec.image_serial == serial and not each.over)
        user = next(users, None)
        if user is not None:
            raise ImageInUse(f"container {user} is made of image {serial}: stop it first")
        try:
            await self._runtime().release_image(serial)
        except (running.ImageBusy, OSError) as error:
            raise ImageInUse(f"image {serial} cannot be released: {error}; it is tried again") from error

    async def stop_all(self, grace: float) -> None:
        """Stop all containers side by side, each within its own grace but at most this one, seconds."""
        containers = list(self._containers.values())
        for container in containers:
            container.request_stop(grace)
        for container in containers:
            await container.ended()

    def find(self, name: str) -> Container:
        """Return a container; raises ContainerNotFound."""
        container = self._containers.get(name)
        if container is None:
            raise ContainerNotFound(f"this VM has no container {name}")
        return container

    def find_running(self, name: str) -> RunningContainer:
        """Return a container whose process runs; raises ContainerNotFound and ContainerNotRunning."""
        container = self.find(name)
        if container.running is None:
            raise ContainerNotRunning(f"container {name} is {container.status.state.name}: start it first")
        return container.running

    def logs(self, name: str) -> Logs:
        """Return a container's output; raises ContainerNotFound."""
        self.find(name)
        return self._logs[name]

    def count_oom_kills(self) -> None:
        """Let every container count again."""
        for container in self._containers.values():
            container.count_oom_kills()


@contextlib.contextmanager
def _data_disk(what: str) -> Iterator[None]:
    """Raise DataDiskFull or DataDiskFailed for an OSError of the data disk."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataDiskFull(
                f"{what}: the VM's data disk is full: delete files in its containers, remove a container or recycle "
                "the VM, then try again"
            ) from error
        raise DataDiskFailed(
            f"{what}: the VM's data disk cannot be written: {error.strerror}; recycle the VM"
        ) from error
