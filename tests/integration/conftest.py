"""What the tests share: a node over simulated VMs for each; of real guests, one cell for each module that needs it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cellmesh.image import ContainerImage, GuestImage
from simulator.hub import Hub
from support import images
from support.cell import Cell, running_cell
from support.hollow_images import hollow_container, hollow_guest
from support.node import Node, node, short_directory


@pytest.fixture(scope="session")
def root_image() -> ContainerImage:
    """Give the example `live` as an image that runs as root."""
    return images.root_image()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cell(
    guest_image: GuestImage, example_images: dict[str, ContainerImage], root_image: ContainerImage
) -> AsyncIterator[Cell]:
    """Give a cell that runs, until the module's last test."""
    # Not for the whole session: the suite's last test looks for what is left behind.
    async with running_cell(guest_image, example_images, root_image) as it:
        yield it


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[Hub]:
    """Give a hub of simulated VMs, in a directory that also holds hollow images for a node."""
    with short_directory() as directory:
        hollow_guest(directory / "state" / "images")
        async with Hub(directory / "hub") as it:
            yield it


@pytest.fixture
def place(hub: Hub) -> Path:
    """Give the directory for the node's state."""
    return hub.directory.parent


@pytest_asyncio.fixture
async def it(hub: Hub, place: Path) -> AsyncIterator[Node]:
    """Give a node whose hypervisor serves."""
    async with node(place, hub.binary) as running:
        yield running


@pytest.fixture
def image(place: Path) -> str:
    """Give a container image."""
    return hollow_container(place / "state" / "images")
