"""The hypervisor killed at every named step of a VM's life: it comes back, the wish comes true, nobody else notices."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from cellmesh.api.guest.v1 import guest_service_pb2
from cellmesh.api.hypervisor.v1 import (
    container_service_pb2,
    route_pb2,
    route_service_pb2,
    route_service_pb2_grpc,
    vm_pb2,
    vm_service_pb2,
)
from cellmesh.hypervisor import failpoints
from cellmesh.hypervisor.reconciler.images import serial_of
from cellmesh.hypervisor.vmm import sweep
from cellmesh.hypervisor.vmm.layout import short
from cellmesh.mesh.errors import Code, MeshError
from simulator import Hub, SimulatedGuest
from simulator.servicers import GuestServicer
from support.fake_envoy import fake_envoy
from support.hollow_images import hollow_container, hollow_guest
from support.node import SECONDS, Node, node, short_directory

_CONFIGURATION = 78
_PAUSE = 0.02
T = TypeVar("T")

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="module")]


class Slow(GuestServicer):
    """Answers Shutdown and leaves the power on, so that a stop has to press the button too."""

    async def Shutdown(self, request: guest_service_pb2.ShutdownRequest, _context: Any) -> Any:
        """Answer at once."""
        return guest_service_pb2.ShutdownResponse()


class SlowGuest(SimulatedGuest):
    """Takes a stop through every rung that a guest can still answer."""

    def make_guest_servicer(self) -> GuestServicer:
        """Return what answers GuestService."""
        return Slow(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A node, an image for containers, and a VM that has no part in what happens."""

    it: Node
    hub: Hub
    image: str
    passing: str
    neighbour: vm_pb2.Vm


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene() -> AsyncIterator[Scene]:
    """Give a node with a neighbour; its hypervisor dies in every test, the neighbour in none."""
    with short_directory() as directory:
        images = directory / "state" / "images"
        hollow_guest(images)
        image, passing = hollow_container(images), hollow_container(images, "passing")
        async with Hub(directory / "hub", guest=SlowGuest) as hub, node(directory, hub.binary) as it:
            yield Scene(it=it, hub=hub, image=image, passing=passing, neighbour=await it.running())


class Life:
    """One VM's life, wish by wish, each repeated until a hypervisor lives to see it come true."""

    def __init__(self, scene: Scene) -> None:
        self.deaths = 0
        self.vm_id = ""
        self._scene = scene
        self._it = scene.it

    async def lead(self) -> None:
        """Go through everything that may be wished of a VM."""
        user, first = str(uuid.uuid4()), str(uuid.uuid4())
        create = vm_service_pb2.CreateVmRequest(request_id=first, user_id=user, spec=vm_pb2.VmSpec())
        self.vm_id = (await self._survive(lambda: self._it.vms.CreateVm(create))).vm.vm_id
        # To die while starting a VM is our fault, not the VM's: its policy is not asked.
        assert (await self._reach(vm_pb2.VM_STATE_RUNNING)).restart_count == 0
        await self._survive(lambda: self._it.start_container(self.vm_id, self._scene.image))
        await self._start_and_remove()
        await self._switch()
        await self._wish("Recycle")
        await self._reach(vm_pb2.VM_STATE_RUNNING, epoch=2)
        await self._wish("Stop")
        await self._reach(vm_pb2.VM_STATE_STOPPED)
        await self._wish("Start")
        await self._reach(vm_pb2.VM_STATE_RUNNING, epoch=3)
        await self._wish("Delete")
        await self._survive(self._gone)

    async def _start_and_remove(self) -> None:
        """Start a container of an image of its own and remove it, twice with one request; its disk leaves with it."""
        await self._survive(lambda: self._it.start_container(self.vm_id, self._scene.passing, "passing"))
        request = container_service_pb2.DeleteContainerRequest(
            request_id=str(uuid.uuid4()), vm_id=self.vm_id, container_name="passing", force=True
        )
        for _ in range(2):
            await self._survive(lambda: self._it.containers.DeleteContainer(request))
        await self._survive(self._disk_gone)
        listing = container_service_pb2.ListContainersRequest(vm_id=self.vm_id)
        (left,) = (await self._survive(lambda: self._it.containers.ListContainers(listing))).containers
        assert left.container_name == "app"

    async def _disk_gone(self) -> None:
        machine = self._scene.hub.processes[self._it.run_dir / "vm" / short(self.vm_id)].machine
        assert machine is not None
        while serial_of(self._scene.passing) in machine.serials:  # noqa: ASYNC110  # a double tells nobody
            await asyncio.sleep(_PAUSE)

    async def _switch(self) -> None:
        """Lead the live route to the container, twice with one request, for an edge that is there."""
        target = route_pb2.RouteTarget(container_name="app")
        request = route_service_pb2.SwitchRouteRequest(
            request_id=str(uuid.uuid4()), vm_id=self.vm_id, prefix="/", target=target
        )

        async def switch() -> route_pb2.Route:
            async with fake_envoy(self._it.run_dir / "edge" / "edge.sock"):
                return (await route_service_pb2_grpc.RouteServiceStub(self._it.channel).SwitchRoute(request)).route

        route = await self._survive(switch)
        assert (route.target, route.revision) == (target, 2)
        assert await self._survive(switch) == route

    async def _wish(self, verb: str) -> None:
        """Wish something twice; an answer that was lost is asked for again in between."""
        request = getattr(vm_service_pb2, f"{verb}VmRequest")(request_id=str(uuid.uuid4()), vm_id=self.vm_id)
        answer = await self._survive(lambda: getattr(self._it.vms, f"{verb}Vm")(request))
        assert await self._survive(lambda: getattr(self._it.vms, f"{verb}Vm")(request)) == answer

    async def _gone(self) -> None:
        """Wait until there is no such VM; MeshError if it cannot be asked for."""
        try:
            while True:
                await self._it.get(self.vm_id)
                await asyncio.sleep(_PAUSE)
        except MeshError as error:
            if error.reason != "VM_NOT_FOUND":
                raise

    async def _reach(self, state: vm_pb2.VmState, *, epoch: int = 0) -> vm_pb2.Vm:
        return await self._survive(lambda: self._it.until(self.vm_id, state, epoch=epoch))

    async def _survive(self, step: Callable[[], Awaitable[T]]) -> T:
        """Take a step, again after the hypervisor has died and come back, or asked for patience."""
        async with asyncio.timeout(2 * SECONDS):
            while True:
                done = await self._unless_it_dies(step)
                if done is None:
                    await self._come_back()
                elif (error := done.exception()) is None:
                    return done.result()
                elif not isinstance(error, MeshError) or error.code is not Code.UNAVAILABLE:
                    raise error
                await asyncio.sleep(_PAUSE)

    async def _unless_it_dies(self, step: Callable[[], Awaitable[T]]) -> asyncio.Future[T] | None:
        """Take a step and return how it ended, or None if the hypervisor died meanwhile."""
        assert self._it.process is not None
        doing = asyncio.ensure_future(step())
        dying = asyncio.ensure_future(self._it.process.wait())
        try:
            await asyncio.wait({doing, dying}, return_when=asyncio.FIRST_COMPLETED)
            return doing if doing.done() else None
        finally:
            doing.cancel()
            dying.cancel()
            await asyncio.gather(doing, dying, return_exceptions=True)

    async def _come_back(self) -> None:
        assert self._it.process is not None
        assert self._it.process.returncode == -signal.SIGKILL, self._it.log.read_text()
        self.deaths += 1
        await self._it.hang_up()
        await self._it.start()


@pytest.mark.parametrize("name", failpoints.NAMES)
async def test_a_crash_at_any_step_is_made_good(scene: Scene, name: str) -> None:
    """Prove that a kill there loses no wish and no answer, starts no second VMM, and touches no other VM."""
    it = scene.it
    await it.hang_up()
    await it.stop(signal.SIGKILL)
    await it.start(failpoint=name)
    life = Life(scene)
    await life.lead()
    assert life.deaths == 1, f"no wish leads to {name}: let this test lead there"
    assert scene.hub.doubles == []
    assert _left(it, life.vm_id) == []
    assert [event for event in await it.all_events() if event.HasField("anomaly")] == []
    neighbour = await it.until(scene.neighbour.vm_id, vm_pb2.VM_STATE_RUNNING)
    assert (neighbour.vmm_pid, neighbour.epoch) == (scene.neighbour.vmm_pid, scene.neighbour.epoch)
    assert sweep.vmm_processes(it.run_dir / "vm" / short(neighbour.vm_id)) == [neighbour.vmm_pid]


async def test_a_second_hypervisor_is_refused(scene: Scene) -> None:
    """Prove that two never work on one state, and that the second harms neither the first nor its socket."""
    second = Node(scene.it.run_dir.parent, scene.hub.binary)
    second.log = scene.it.log.with_suffix(".second")
    second.process = await second.spawn()
    assert await second.ended() == _CONFIGURATION
    assert scene.it.process is not None
    assert f"Another hypervisor (pid {scene.it.process.pid})" in second.log.read_text()
    assert scene.it.process.returncode is None
    neighbour = await scene.it.get(scene.neighbour.vm_id)
    assert (neighbour.state, neighbour.vmm_pid) == (vm_pb2.VM_STATE_RUNNING, scene.neighbour.vmm_pid)


def _left(it: Node, vm_id: str) -> list[object]:
    """Return what is still there of a VM."""
    run, state = it.run_dir / "vm" / short(vm_id), it.state_dir / "vm" / vm_id
    processes = [*sweep.vmm_processes(run), *sweep.bridge_processes(run)]
    uids = [path for path in (it.state_dir / "uids").glob("*") if path.read_text() == vm_id]
    return [*processes, *(path for path in (run, state) if path.exists()), *uids]
