"""A cell with three containers in a real guest: two that serve, and one whose root user tries the walls."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from cellmesh.api.common.v1 import container_pb2 as common_container_pb2
from cellmesh.api.common.v1 import health_pb2
from cellmesh.api.hypervisor.v1 import container_pb2, container_service_pb2, event_pb2
from cellmesh.image import ContainerImage, GuestImage
from support.commands import Box
from support.node import Node
from support.real_node import PATIENCE, real_node

SAME_PORT = {"live": 8080, "dev": 8080, "root": 8080}
DATA_DISK = 512 << 20
"""Small enough that a container can fill its share of it in an emulated guest."""
MARK = "only-live-may-see-this"
Container = container_pb2.Container
Status = common_container_pb2.ContainerStatus
Variable = common_container_pb2.EnvironmentVariable


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A running VM: `live` and `dev` run as their images' user, `root` as root."""

    it: Node
    vm_id: str
    images: dict[str, str]
    live: Box
    dev: Box
    root: Box
    everywhere: Mapping[str, str] = field(default_factory=dict)
    """Variables of every container that is started."""

    async def start(
        self, name: str, *argv: str, image: str = "dev", environment: Iterable[Variable] = (), **spec: object
    ) -> Box:
        """Start another container and return it."""
        variables = [*environment, *(Variable(name=key, value=value) for key, value in self.everywhere.items())]
        await self.it.start_container(self.vm_id, self.images[image], name, argv=argv, environment=variables, **spec)
        return Box(node=self.it, vm_id=self.vm_id, name=name)

    async def stop(self, name: str) -> Status:
        """Stop a container and return how it is then."""
        request = container_service_pb2.StopContainerRequest(
            request_id=str(uuid.uuid4()), vm_id=self.vm_id, container_name=name
        )
        return (await self.it.containers.StopContainer(request, timeout=PATIENCE)).container.status

    @asynccontextmanager
    async def running(self, name: str, *argv: str, **spec: object) -> AsyncIterator[Box]:
        """Run another container inside; it is stopped afterwards, so that it is in nobody's way."""
        box = await self.start(name, *argv, stop_grace=timedelta(), **spec)
        try:
            yield box
        finally:
            await self.stop(name)

    async def until(self, name: str, wanted: Callable[[Status], bool]) -> Container:
        """Ask for a container until it is as wanted; return it."""
        request = container_service_pb2.GetContainerRequest(vm_id=self.vm_id, container_name=name)
        async with asyncio.timeout(PATIENCE):
            while True:
                container = (await self.it.containers.GetContainer(request)).container
                if wanted(container.status):
                    return container
                await asyncio.sleep(0.1)

    async def events(self, name: str) -> list[event_pb2.Event]:
        """Return the events of a container, oldest first."""
        return [event for event in await self.it.all_events(self.vm_id) if event.container_name == name]


@asynccontextmanager
async def running_cell(
    guest: GuestImage, examples: dict[str, ContainerImage], root: ContainerImage
) -> AsyncIterator[Cell]:
    """Boot a VM and start its containers; all of it is gone afterwards."""
    async with empty_cell(guest, examples, root) as cell:
        await fill(cell)
        yield cell


@asynccontextmanager
async def empty_cell(
    guest: GuestImage, examples: dict[str, ContainerImage], root: ContainerImage
) -> AsyncIterator[Cell]:
    """Boot a VM, its containers still to be started; all of it is gone afterwards."""
    images = {**examples, "root": root}
    async with real_node(guest, images.values()) as it:
        vm = await it.running(data_disk_bytes=DATA_DISK)
        yield Cell(
            it=it,
            vm_id=vm.vm_id,
            images={name: image.digest for name, image in images.items()},
            **{
                name: Box(node=it, vm_id=vm.vm_id, name=f"sandbox-{name}" if name != "root" else name)
                for name in ("live", "dev", "root")
            },
        )


async def fill(cell: Cell, *, ports: Mapping[str, int] = SAME_PORT) -> None:
    """Start the containers of a cell, or start them anew, and wait until each has been found well."""
    boxes = {"live": cell.live, "dev": cell.dev, "root": cell.root}
    for name, box in boxes.items():
        http = common_container_pb2.HttpProbe(port=ports[name], path="/healthz")
        probe = common_container_pb2.HealthProbe(http=http, failure_threshold=10)
        variables = [Variable(name="PORT", value=str(ports[name]))]
        if name == "live":
            variables.append(Variable(name="MARK", value=MARK))
        await cell.start(box.name, image=name, environment=variables, probe=probe)
    for box in boxes.values():
        await cell.until(box.name, lambda status: status.health == health_pb2.HEALTH_STATUS_SERVING)
