"""One edge for each module: two users, one with a live, a dev and a sidecar, one with a live only."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from support.envoy import EdgeUnderTest, furnish, running_edge


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def edge() -> AsyncIterator[EdgeUnderTest]:
    """Give an edge that serves, until the module's last test."""
    async with running_edge() as it:
        await furnish(it)
        yield it
