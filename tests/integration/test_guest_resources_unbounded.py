"""The control of the resource table: in a guest without the bounds, the rows they are for fail."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cellmesh.image import ContainerImage
from integration.test_guest_resources import DISK_FLOOR, START, UNCHARGED_BOUND, measure
from integration.test_guest_resources import fill as fill_disk
from support import wall_defects
from support.cell import Cell, empty_cell, fill

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module")]

ENOSPC = 28


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def unbounded(example_images: dict[str, ContainerImage], root_image: ContainerImage) -> AsyncIterator[Cell]:
    """Give a cell in a guest whose agent sets no machine-wide limit."""
    async with empty_cell(wall_defects.guest_without_bounds(), example_images, root_image) as cell:
        await fill(cell)
        yield cell


@pytest.mark.parametrize(
    ("resource", "refused"),
    [
        ("files", "files"),
        ("inotify", "inotify"),
        ("ptys", "pty"),
        ("timers", "timer"),
        ("posix queues", "queue"),
    ],
)
async def test_without_its_bound_a_pool_is_empty(unbounded: Cell, resource: str, refused: str) -> None:
    """Prove that a sibling is refused what the table says it gets."""
    measured = await measure(unbounded, resource)
    assert {refused, START} & set(measured.refused), measured


@pytest.mark.parametrize("resource", ["netlink", "datagrams", "unaccepted connections"])
async def test_without_its_bound_memory_goes_uncounted(unbounded: Cell, resource: str) -> None:
    """Prove that the guest's memory grows by more than the table allows."""
    measured = await measure(unbounded, resource)
    assert measured.uncharged > UNCHARGED_BOUND, measured


async def test_without_quotas_one_container_fills_the_disk(unbounded: Cell) -> None:
    """Prove that a sibling is refused what the table says it gets."""
    assert (await fill_disk(unbounded.root, "/tmp/filled")).errno == ENOSPC
    assert (await fill_disk(unbounded.live, "/tmp/filled", wanted=DISK_FLOOR)).errno == ENOSPC
    await unbounded.root.shell("rm -r /tmp/filled")
