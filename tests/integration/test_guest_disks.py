"""A real guest lets go of what no container needs: disks of images, and layers of any depth."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cellmesh.api.common.v1 import container_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2, vm_pb2, vm_service_pb2
from cellmesh.image import ContainerImage, GuestImage
from support.commands import Box
from support.node import Node
from support.real_node import real_node

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module")]

_DISKS = 8
"""How many disks the emulator can have plugged in at a time."""
_LAST_SECONDS = ("sh", "-c", "sleep 100000")
_NESTED = """
import os
here = os.open("/tmp", os.O_RDONLY)
for _ in range(38000):
    os.mkdir("d", dir_fd=here)
    inner = os.open("d", os.O_RDONLY, dir_fd=here)
    os.close(here)
    here = inner
"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def it(guest_image: GuestImage, example_images: dict[str, ContainerImage]) -> AsyncIterator[Node]:
    """Give a node that has the images."""
    async with real_node(guest_image, example_images.values()) as node:
        yield node


async def test_disks_come_and_go_more_often_than_there_are_slots(
    it: Node, example_images: dict[str, ContainerImage]
) -> None:
    """A container changes its image again and again in one boot, and its files are those of the image each time."""
    vm = await it.running()
    digests = [image.digest for image in example_images.values()][:2]
    for number in range(_DISKS + 2):
        await it.start_container(vm.vm_id, digests[number % 2], argv=_LAST_SECONDS)
        assert await Box(node=it, vm_id=vm.vm_id, name="app").shell("ls / >/dev/null && echo well") == "well"
    assert (await it.get(vm.vm_id)).epoch == 1


async def test_a_cell_with_a_deep_tree_is_recycled_and_a_container_deleted(
    it: Node, example_images: dict[str, ContainerImage]
) -> None:
    """38,000 nested directories in a layer hold up neither another image nor a recycle nor a deletion."""
    vm = await it.running()
    digests = [image.digest for image in example_images.values()][:2]
    await it.start_container(vm.vm_id, digests[0], argv=_LAST_SECONDS)
    box = Box(node=it, vm_id=vm.vm_id, name="app")
    await box.run("python3", "-c", _NESTED)
    await it.start_container(vm.vm_id, digests[1], argv=_LAST_SECONDS)
    await box.run("python3", "-c", _NESTED)
    await it.vms.RecycleVm(vm_service_pb2.RecycleVmRequest(request_id=str(uuid.uuid4()), vm_id=vm.vm_id))
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)
    await it.until_container(vm.vm_id, "app", container_pb2.CONTAINER_STATE_RUNNING)
    assert await box.shell("ls /tmp") == ""
    await it.containers.DeleteContainer(
        container_service_pb2.DeleteContainerRequest(
            request_id=str(uuid.uuid4()), vm_id=vm.vm_id, container_name="app", force=True, persistent_paths=True
        )
    )
    await it.start_container(vm.vm_id, digests[0], argv=_LAST_SECONDS)
    assert (await it.get(vm.vm_id)).epoch == 2
