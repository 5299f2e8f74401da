"""Image disks and containers come and go in one boot of a simulated VM."""

from __future__ import annotations

import asyncio
import signal
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest

from cellmesh.api.common.v1 import container_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2, vm_pb2
from cellmesh.hypervisor.vmm.layout import short
from cellmesh.mesh.errors import Code, MeshError
from simulator.errors import Refusal, abort
from simulator.guest import SimulatedGuest
from simulator.hub import Hub
from simulator.servicers import ContainerServicer
from support.hollow_images import hollow_container
from support.local_runtime import until
from support.node import Node

pytestmark = pytest.mark.asyncio

_SLOTS = 26
"""How many disks a simulated VMM takes, those of the VM itself included."""


class Keeper(ContainerServicer):
    """Lets go of no disk as long as its guest is `stubborn`: it refuses, or does not answer."""

    async def ReleaseImage(self, request: Any, context: Any) -> Any:
        """Refuse, hang, or do as asked."""
        await self._resist("IMAGE_IN_USE", context)
        return await super().ReleaseImage(request, context)

    async def RemoveContainer(self, request: Any, context: Any) -> Any:
        """Refuse, hang, or do as asked."""
        await self._resist("CONTAINER_RUNNING", context)
        return await super().RemoveContainer(request, context)

    async def _resist(self, reason: str, context: Any) -> None:
        assert isinstance(self.guest, Stubborn)
        if self.guest.stubborn == "refuses":
            await abort(context, Refusal(grpc.StatusCode.FAILED_PRECONDITION, reason, "not now"))
        if self.guest.stubborn == "hangs":
            await self.guest.relents.wait()


class Stubborn(SimulatedGuest):
    """A guest that gives nothing back until it relents."""

    stubborn = "refuses"
    relents: asyncio.Event

    def make_container_servicer(self) -> ContainerServicer:
        """Return what resists."""
        self.relents = asyncio.Event()
        return Keeper(self)

    def relent(self) -> None:
        """Do from now on what is asked, also what waits."""
        self.stubborn = ""
        self.relents.set()


class Silent(Stubborn):
    """One that does not answer."""

    stubborn = "hangs"


def guest_of(hub: Hub, it: Node, vm_id: str) -> Stubborn:
    """Return the guest of a VM."""
    guest = hub.processes[it.run_dir / "vm" / short(vm_id)].guest
    assert isinstance(guest, Stubborn)
    return guest


def serials(hub: Hub, it: Node, vm_id: str) -> set[str]:
    """Return the serials of the image disks that the VMM has."""
    process = hub.processes[it.run_dir / "vm" / short(vm_id)]
    assert process.machine is not None
    return set(process.machine.serials) - {"root", "data"}


async def delete(it: Node, vm_id: str, name: str = "app", **options: bool) -> None:
    """Delete a container."""
    request = container_service_pb2.DeleteContainerRequest(
        request_id=str(uuid.uuid4()), vm_id=vm_id, container_name=name, **options
    )
    await it.containers.DeleteContainer(request)


async def test_a_vm_is_given_new_images_without_end(it: Node, hub: Hub, place: Path) -> None:
    """Of 40 images one after another only the last one's disk stays, though there are slots for 26."""
    vm = await it.running()
    for number in range(40):
        image = hollow_container(place / "state" / "images", f"image{number}")
        await it.start_container(vm.vm_id, image)
    await until(lambda: serials(hub, it, vm.vm_id) == {image[7:27]})
    assert (await it.get(vm.vm_id)).epoch == 1


async def test_a_new_hypervisor_detaches_what_the_vmm_has(it: Node, hub: Hub, place: Path) -> None:
    """Which disks are attached is read from the VMM; the one that no container needs goes."""
    images = [hollow_container(place / "state" / "images", name) for name in ("one", "two")]
    vm = await it.running()
    await it.start_container(vm.vm_id, images[0])
    await it.stop(signal.SIGKILL)
    await it.hang_up()
    await it.start()
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING)
    await it.start_container(vm.vm_id, images[1])
    await until(lambda: serials(hub, it, vm.vm_id) == {images[1][7:27]})


async def test_a_container_is_deleted_and_its_name_is_free(it: Node, hub: Hub, image: str) -> None:
    """A running one needs force; then record, route and disk go, the log says it, and the name begins anew."""
    vm = await it.running()
    await it.start_container(vm.vm_id, image)
    with pytest.raises(MeshError) as error:
        await delete(it, vm.vm_id)
    assert error.value.reason == "CONTAINER_RUNNING"
    await delete(it, vm.vm_id, force=True)
    listing = container_service_pb2.ListContainersRequest(vm_id=vm.vm_id)
    assert list((await it.containers.ListContainers(listing)).containers) == []
    assert [event.HasField("container_deleted") for event in await it.all_events(vm.vm_id)].count(True) == 1
    await until(lambda: serials(hub, it, vm.vm_id) == set())
    with pytest.raises(MeshError) as error:
        await delete(it, vm.vm_id)
    assert error.value.reason == "CONTAINER_NOT_FOUND"
    again = await it.start_container(vm.vm_id, image)
    assert (again.generation, again.status.state) == (1, container_pb2.CONTAINER_STATE_RUNNING)


async def test_deleting_frees_room_for_another(it: Node, image: str) -> None:
    """The seventeenth container is refused until one is deleted."""
    vm = await it.running()
    for number in range(16):
        await it.start_container(vm.vm_id, image, f"c{number}")
    with pytest.raises(MeshError) as error:
        await it.start_container(vm.vm_id, image, "more")
    assert error.value.reason == "TOO_MANY_CONTAINERS"
    await delete(it, vm.vm_id, "c5", force=True)
    await it.start_container(vm.vm_id, image, "more")


async def test_a_container_that_a_route_leads_to_is_not_deleted(it: Node, image: str) -> None:
    """The refusal names the route."""
    vm = await it.running()
    await it.start_container(vm.vm_id, image, "sandbox-live")
    with pytest.raises(MeshError) as error:
        await delete(it, vm.vm_id, "sandbox-live", force=True)
    assert (error.value.reason, error.value.metadata) == ("CONTAINER_ROUTED", {"prefix": "/"})


@pytest.mark.parametrize("kind", [Stubborn, Silent])
async def test_a_guest_that_keeps_its_disks_runs_out_of_slots_and_of_nothing_else(
    it: Node, hub: Hub, place: Path, image: str, kind: type[Stubborn]
) -> None:
    """The start that finds no slot is refused, what runs goes on, and all is made good when the guest relents."""
    hub.make_guest = kind
    vm = await it.running()
    await it.start_container(vm.vm_id, image, "other")
    store = place / "state" / "images"
    images = [hollow_container(store, f"image{number}") for number in range(_SLOTS)]

    async def start_all() -> None:
        for each in images:
            await it.start_container(vm.vm_id, each)

    with pytest.raises(MeshError) as refused:
        await start_all()
    assert (refused.value.reason, refused.value.code) == ("GUEST_UNREACHABLE", Code.UNAVAILABLE)
    assert "No available PCI device slot" in refused.value.message
    other = await it.container(vm.vm_id, "other")
    assert (other.status.state, other.generation) == (container_pb2.CONTAINER_STATE_RUNNING, 1)
    guest_of(hub, it, vm.vm_id).relent()
    app = await it.until_container(vm.vm_id, "app", container_pb2.CONTAINER_STATE_RUNNING)
    await until(lambda: serials(hub, it, vm.vm_id) == {image[7:27], app.spec.image[7:27]})
    assert (await it.get(vm.vm_id)).epoch == 1


@pytest.mark.parametrize(("kind", "reason"), [(Stubborn, "CONTAINER_RUNNING"), (Silent, "GUEST_UNREACHABLE")])
async def test_a_container_its_guest_does_not_remove_stays_and_can_be_removed_later(
    it: Node, hub: Hub, image: str, kind: type[Stubborn], reason: str
) -> None:
    """The deletion ends with a reason, the record stays, and the same request succeeds when the guest relents."""
    hub.make_guest = kind
    vm = await it.running()
    await it.start_container(vm.vm_id, image)
    request = container_service_pb2.DeleteContainerRequest(
        request_id=str(uuid.uuid4()), vm_id=vm.vm_id, container_name="app", force=True
    )
    with pytest.raises(MeshError) as error:
        await it.containers.DeleteContainer(request)
    assert error.value.reason == reason
    assert (await it.container(vm.vm_id)).status.state == container_pb2.CONTAINER_STATE_STOPPED
    guest_of(hub, it, vm.vm_id).relent()
    await it.containers.DeleteContainer(request)
    await until(lambda: serials(hub, it, vm.vm_id) == set())
    assert (await it.start_container(vm.vm_id, image)).generation == 1
