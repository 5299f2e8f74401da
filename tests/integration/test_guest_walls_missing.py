"""The control of the tests that try the walls: in a guest without them, those tests fail, and only those."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
import pytest_asyncio

from cellmesh.image import ContainerImage
from integration import test_guest_walls as walls
from support import wall_defects
from support.cell import SAME_PORT, Cell, empty_cell, fill

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module")]

CHECKS: dict[str, Callable[[Cell], Awaitable[None]]] = {
    name: check for name, check in inspect.getmembers(walls, inspect.iscoroutinefunction) if name.startswith("test_")
}
BROKEN = {
    wall_defects.LOCKS: (
        walls.test_no_container_opens_the_way_to_the_host,
        walls.test_no_container_inherits_from_the_agent,
        walls.test_no_container_has_or_makes_devices,
        walls.test_every_process_is_held_by_the_same_locks,
        walls.test_each_container_has_ids_of_its_own,
        walls.test_root_makes_none_of_the_machines_calls,
        walls.test_root_changes_no_limit_and_no_setting,
        walls.test_root_moves_no_file_to_another_account,
    ),
    wall_defects.ROOMS: (
        walls.test_neither_sees_the_others_files,
        walls.test_neither_sees_the_others_processes_and_environment,
        walls.test_neither_reaches_the_others_ports,
        # These two look at process 1, which is the agent where a container does not count its own.
        walls.test_no_container_inherits_from_the_agent,
        walls.test_every_process_is_held_by_the_same_locks,
    ),
}
PORTS = {wall_defects.LOCKS: SAME_PORT, wall_defects.ROOMS: {"live": 8080, "dev": 8081, "root": 8082}}
"""In one network not all can serve the same one."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def unwalled(example_images: dict[str, ContainerImage], root_image: ContainerImage) -> AsyncIterator[Cell]:
    """Give a cell in a guest whose agent leaves out the walls it is told to."""
    async with empty_cell(wall_defects.guest_without_walls(), example_images, root_image) as cell:
        yield cell


@pytest.mark.parametrize("missing", BROKEN)
async def test_missing_walls_are_noticed(unwalled: Cell, missing: str) -> None:
    """Prove that each test of the walls fails without the walls it is about, and none of the others."""
    cell = replace(unwalled, everywhere={wall_defects.VARIABLE: missing})
    await fill(cell, ports=PORTS[missing])
    assert {name for name, check in CHECKS.items() if await fails(check, cell)} == {
        check.__name__ for check in BROKEN[missing]
    }


async def fails(check: Callable[[Cell], Awaitable[None]], cell: Cell) -> bool:
    """Run one test; anything but what it asserts is an error of this one."""
    try:
        await check(cell)
    except AssertionError:
        return True
    return False
