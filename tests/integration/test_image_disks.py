"""Image disks and containers come and go in one boot of a simulated VM."""

from __future__ import annotations

import signal
import uuid
from pathlib import Path

import pytest

from cellmesh.api.common.v1 import container_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2, vm_pb2
from cellmesh.hypervisor.vmm.layout import short
from cellmesh.mesh.errors import MeshError
from simulator.hub import Hub
from support.hollow_images import hollow_container
from support.local_runtime import until
from support.node import Node

pytestmark = pytest.mark.asyncio


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
