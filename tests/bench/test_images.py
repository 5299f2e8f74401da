"""What a start takes in a VM that has seen many images, beside the same in one that has seen one."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from google.protobuf.duration_pb2 import Duration

from bench.conftest import Interleave, Record
from cellmesh.api.common.v1 import container_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2
from cellmesh.image import GuestImage, ImageStore
from support.images import example_with
from support.node import Node
from support.real_node import real_node

_BEFORE = 40
_ROUNDS = 5
_IDLE = ("sleep", "86400")

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]


@dataclass(slots=True, kw_only=True)
class Succession:
    """A VM whose one container is started from another image each time."""

    it: Node
    vm_id: str
    images: list[str] = field(default_factory=list)

    async def start(self) -> None:
        """Start the container from the next image, which the VM has not seen."""
        await self.it.start_container(self.vm_id, self.images.pop(0), "app", argv=_IDLE, stop_grace=Duration())
        await self.it.until_container(self.vm_id, "app", container_pb2.CONTAINER_STATE_RUNNING)

    async def stop(self) -> None:
        """Stop the container."""
        request = container_service_pb2.StopContainerRequest(
            request_id=str(uuid.uuid4()), vm_id=self.vm_id, container_name="app"
        )
        await self.it.containers.StopContainer(request)
        await self.it.until_container(self.vm_id, "app", container_pb2.CONTAINER_STATE_STOPPED)


@asynccontextmanager
async def _successions(guest: GuestImage) -> AsyncIterator[tuple[Succession, Succession]]:
    async with real_node(guest) as it:
        store = ImageStore(it.state_dir / "images")
        images = [example_with(store, Labels={"number": str(number)}) for number in range(_BEFORE + _ROUNDS)]
        vms = await asyncio.gather(it.running(), it.running())
        old, young = (Succession(it=it, vm_id=vm.vm_id, images=list(images)) for vm in vms)
        for each, starts in ((old, _BEFORE), (young, 1)):
            for _ in range(starts):
                await each.start()
                await each.stop()
        yield old, young


@pytest.fixture(scope="module")
def successions(runner: asyncio.Runner, guest_image: GuestImage) -> Iterator[tuple[Succession, Succession]]:
    """Give a VM in which 40 images were started one after another, and one that has seen one."""
    stack = AsyncExitStack()
    try:
        yield runner.run(stack.enter_async_context(_successions(guest_image)))
    finally:
        runner.run(stack.aclose())


def test_container_start_41st(
    successions: tuple[Succession, Succession],
    runner: asyncio.Runner,
    interleave: Interleave,
    record: Record,
    *,
    emulated: bool,
) -> None:
    """Prove that the 41st image of a boot is started as fast as the second."""
    old, young = successions

    def second() -> float:
        async def timed() -> float:
            before = asyncio.get_running_loop().time()
            await young.start()
            took = asyncio.get_running_loop().time() - before
            await young.stop()
            return took

        return runner.run(timed())

    samples, floors = interleave(
        lambda: runner.run(old.start()), second, rounds=_ROUNDS, reset=lambda: runner.run(old.stop())
    )
    note = "StartContainer of the 41st to 45th image of one boot; floor: of the 2nd to 6th of another"
    record("container_start_41st", samples, floors=floors, unit="s", max_ratio=1.5, emulated=emulated, note=note)
