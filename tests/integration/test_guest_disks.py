"""A real guest lets go of the disks of images that no container needs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cellmesh.image import ContainerImage, GuestImage
from support.commands import Box
from support.node import Node
from support.real_node import real_node

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module")]

_DISKS = 8
"""How many disks the emulator can have plugged in at a time."""
_LAST_SECONDS = ("sh", "-c", "sleep 100000")


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
