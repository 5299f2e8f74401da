"""What the tests with real guests share: as few boots as possible, one for each module that needs a cell."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cellmesh.image import ContainerImage, GuestImage
from support import images
from support.cell import Cell, running_cell


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
