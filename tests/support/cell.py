"""A cell with three containers in a real guest: two that serve, and one whose root user tries the walls."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from cellmesh.api.common.v1 import container_pb2 as common_container_pb2
from cellmesh.api.hypervisor.v1 import container_pb2, container_service_pb2, event_pb2
from cellmesh.image import ContainerImage, GuestImage
from support.commands import Box
from support.node import Node
from support.real_node import PATIENCE, real_node

APP_PORT = 8080
MARK = "only-live-may-see-this"
Container = container_pb2.Container
Status = common_container_pb2.ContainerStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A running VM: `live` and `dev` run as their images' user, `root` as root."""

    it: Node
    vm_id: str
    images: dict[str, str]
    live: Box
    dev: Box
    root: Box

    async def start(self, name: str, *argv: str, image: str = "dev", **spec: object) -> Box:
        """Start another container and return it."""
        await self.it.start_container(self.vm_id, self.images[image], name, argv=argv, **spec)
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
    images = {**examples, "root": root}
    async with real_node(guest, images.values()) as it:
        vm = await it.running()
        cell = Cell(
            it=it,
            vm_id=vm.vm_id,
            images={name: image.digest for name, image in images.items()},
            **{
                name: Box(node=it, vm_id=vm.vm_id, name=f"sandbox-{name}" if name != "root" else name)
                for name in ("live", "dev", "root")
            },
        )
        probe = common_container_pb2.HealthProbe(
            http=common_container_pb2.HttpProbe(port=APP_PORT, path="/healthz"), failure_threshold=10
        )
        mark = common_container_pb2.EnvironmentVariable(name="MARK", value=MARK)
        await cell.start("sandbox-live", image="live", environment=[mark], probe=probe)
        await cell.start("sandbox-dev", image="dev", probe=probe)
        await cell.start("root", image="root")
        yield cell
