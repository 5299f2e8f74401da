"""What a warm VM takes for what it is asked, beside the same done in the guest's own root without the product."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
from google.protobuf.duration_pb2 import Duration

from bench import agent_image
from bench.conftest import Interleave, Record
from bench.guest_door import PORT, Door
from cellmesh.api.common.v1 import container_pb2
from cellmesh.api.guest.v1 import guest_service_pb2, guest_service_pb2_grpc
from cellmesh.api.hypervisor.v1 import container_service_pb2
from cellmesh.hypervisor.bridge.client import BridgeClient
from cellmesh.image import ContainerImage, GuestImage, ImageStore
from cellmesh.mesh.channel import guest_channel
from support.commands import Box
from support.node import Node
from support.real_node import real_node

_APP_PORT = 8080
_SERVER = ("busybox", "httpd", "-f", "-p", str(_APP_PORT))
_CALLS = 10
_BYTES = 4 << 20
_LOG_BYTES = 512 << 10
_WRITE_LOG = f"yes | head -c {_LOG_BYTES}; sleep 86400"

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """A VM that runs, with its door, and the image of its containers."""

    it: Node
    vm_id: str
    image: str
    door: Door
    guest: guest_service_pb2_grpc.GuestServiceAsyncStub

    async def start(self) -> None:
        """Start the server and wait until its port answers."""
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(self.door.ask, "wait", container="server", port=_APP_PORT))
            await self.it.start_container(self.vm_id, self.image, "server", argv=_SERVER, stop_grace=Duration())

    def start_bare(self) -> float:
        """Do the same with crun alone; seconds."""
        took = self.door.ask("start", template="template", port=_APP_PORT)
        self.door.ask("remove")
        return took

    async def stop(self) -> None:
        """Stop the server and wait until nothing of it runs."""
        request = container_service_pb2.StopContainerRequest(
            request_id=str(uuid.uuid4()), vm_id=self.vm_id, container_name="server"
        )
        await self.it.containers.StopContainer(request)
        await self.it.until_container(self.vm_id, "server", container_pb2.CONTAINER_STATE_STOPPED)

    async def read_log(self) -> None:
        """Read what the template has written."""
        request = container_service_pb2.StreamLogsRequest(vm_id=self.vm_id, container_name="template")
        size = 0
        async for answer in self.it.containers.StreamLogs(request):
            size += sum(len(chunk.data) for chunk in answer.chunks)
        assert size == _LOG_BYTES, size

    async def give(self) -> None:
        """Send bytes to a command."""
        ended = await Box(node=self.it, vm_id=self.vm_id, name="template").run("wc", "-c", stdin=bytes(_BYTES))
        assert ended.text == str(_BYTES)

    async def take(self) -> None:
        """Read bytes of a command."""
        box = Box(node=self.it, vm_id=self.vm_id, name="template")
        assert len((await box.run("head", "-c", str(_BYTES), "/dev/zero")).stdout) == _BYTES

    async def execute(self) -> None:
        """Run a command that does nothing."""
        ended = await Box(node=self.it, vm_id=self.vm_id, name="template").run("true")
        assert ended.exit_code == 0


@asynccontextmanager
async def _warm(guest: GuestImage, example: ContainerImage) -> AsyncIterator[Warm]:
    async with real_node(guest, [example]) as it:
        variant = agent_image.publish(ImageStore(it.state_dir / "images"), guest)
        vm = await it.running(guest_image=variant)
        directory = it.run_dir / "vm" / vm.vm_id.replace("-", "")[:12]
        await BridgeClient(directory=directory).add("door", PORT)
        async with guest_channel(directory / "in" / f"agent.{vm.epoch}", vm_id=vm.vm_id) as channel:
            warm = Warm(
                it=it,
                vm_id=vm.vm_id,
                image=example.digest,
                door=Door(directory / "in" / "door"),
                guest=guest_service_pb2_grpc.GuestServiceStub(channel),
            )
            await it.start_container(vm.vm_id, example.digest, "template", argv=("sh", "-c", _WRITE_LOG))
            await it.until_container(vm.vm_id, "template", container_pb2.CONTAINER_STATE_RUNNING)
            await asyncio.to_thread(warm.door.ask, "prepare", template="template", argv=_SERVER)
            yield warm


@pytest.fixture(scope="module")
def warm(runner: asyncio.Runner, guest_image: GuestImage, example_images: dict[str, ContainerImage]) -> Iterator[Warm]:
    """Give the VM all benchmarks here share."""
    stack = AsyncExitStack()
    try:
        yield runner.run(stack.enter_async_context(_warm(guest_image, example_images["live"])))
    finally:
        runner.run(stack.aclose())


def test_container_start(
    warm: Warm, runner: asyncio.Runner, interleave: Interleave, record: Record, *, emulated: bool
) -> None:
    """Prove that a container starts in at most two and a half times what crun alone takes for the same bundle."""
    samples, floors = interleave(
        lambda: runner.run(warm.start()),
        warm.start_bare,
        rounds=5,
        warmup=1,
        reset=lambda: runner.run(warm.stop()),
    )
    note = "StartContainer until its port answers; floor: crun run of the same bundle in the same guest"
    record("container_start", samples, floors=floors, unit="s", max_ratio=2.5, emulated=emulated, note=note)


def test_guest_rpc(
    warm: Warm, runner: asyncio.Runner, interleave: Interleave, record: Record, *, emulated: bool
) -> None:
    """Prove that the way into a guest adds little to a call made inside it."""

    async def call() -> None:
        await warm.guest.GetInfo(guest_service_pb2.GetInfoRequest())

    samples, floors = interleave(
        lambda: runner.run(call()),
        lambda: warm.door.ask("calls", count=_CALLS) / _CALLS,
        rounds=20,
        warmup=2,
    )
    record(
        "guest_rpc",
        [1000 * sample for sample in samples],
        floors=[1000 * floor for floor in floors],
        unit="ms",
        max_ratio=2.0,
        emulated=emulated,
        note="GetInfo over bridge and vsock; floor: GetInfo on the agent's unix socket, called inside the guest",
    )


def test_exec_start(
    warm: Warm, runner: asyncio.Runner, interleave: Interleave, record: Record, *, emulated: bool
) -> None:
    """Prove that a command in a container takes at most two and a half times what crun alone takes for it."""
    samples, floors = interleave(
        lambda: runner.run(warm.execute()),
        lambda: warm.door.ask("exec", container="template", argv=["true"]),
        rounds=5,
        warmup=1,
    )
    note = "Exec of `true` until its exit code is here; floor: crun exec in the same guest"
    record("exec_start", samples, floors=floors, unit="s", max_ratio=2.5, emulated=emulated, note=note)


@pytest.mark.parametrize("way", ["in", "out"])
def test_exec_throughput(
    warm: Warm, runner: asyncio.Runner, interleave: Interleave, record: Record, way: str, *, emulated: bool
) -> None:
    """Measure bytes to and from a command beside the same bytes over the bridge alone."""
    samples, floors = interleave(
        lambda: runner.run(warm.give() if way == "in" else warm.take()),
        lambda: (
            warm.door.ask("take", give=_BYTES, size=_BYTES)
            if way == "in"
            else warm.door.ask("give", take=_BYTES, size=_BYTES)
        ),
        rounds=3,
    )
    mebibytes = _BYTES / (1 << 20)
    record(
        f"exec_throughput_{way}",
        [1000 * sample / mebibytes for sample in samples],
        floors=[1000 * floor / mebibytes for floor in floors],
        unit="ms/MiB",
        emulated=emulated,
        note="the command's start included; floor: raw bytes over bridge and vsock",
    )


def test_log_stream(
    warm: Warm, runner: asyncio.Runner, interleave: Interleave, record: Record, *, emulated: bool
) -> None:
    """Measure reading a log beside the same bytes over the bridge alone."""
    samples, floors = interleave(
        lambda: runner.run(warm.read_log()),
        lambda: warm.door.ask("give", take=_LOG_BYTES, size=_LOG_BYTES),
        rounds=5,
        warmup=1,
    )
    mebibytes = _LOG_BYTES / (1 << 20)
    record(
        "log_stream",
        [1000 * sample / mebibytes for sample in samples],
        floors=[1000 * floor / mebibytes for floor in floors],
        unit="ms/MiB",
        emulated=emulated,
        note="StreamLogs of a log that is there; floor: raw bytes over bridge and vsock",
    )
