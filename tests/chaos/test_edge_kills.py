"""Each process behind the edge is killed under traffic: what does not need it goes on, what does comes back.

How long each took to come back is written to build/edge_kills.txt; here it only has to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from support import kills, tables
from support.edge import edge_on_simulator
from support.kills import Scene, scene_on

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene() -> AsyncIterator[Scene]:
    """Give one edge to all tests here; each leaves it whole."""
    async with scene_on(edge_on_simulator()) as it:
        yield it
        tables.write("edge_kills", ("killed", "until", "took"), it.measured)


async def test_without_hypervisor(scene: Scene) -> None:
    """Prove that all traffic goes on while the hypervisor is away and comes back, and that it switches routes then."""
    assert await kills.without_hypervisor(scene) == []


async def test_without_a_bridge(scene: Scene) -> None:
    """Prove that a bridge takes only its own VM's traffic with it, and that this comes back with nothing restarted."""
    assert await kills.without_a_bridge(scene) == []


async def test_without_activator(scene: Scene) -> None:
    """Prove that only requests which wait for a cell miss it, and are told so, and that it wakes the cell then."""
    assert await kills.without_activator(scene) == []


async def test_without_authenticator(scene: Scene) -> None:
    """Prove that nobody is let in while nobody says who they are, and that streams which were let in stay."""
    assert await kills.without_authenticator(scene) == []


async def test_without_envoy(scene: Scene) -> None:
    """Prove that Envoy comes back to what was wished while it was away, and that no cell notices."""
    assert await kills.without_envoy(scene) == []
