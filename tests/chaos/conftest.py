"""What drills share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from support.arena import Arena, fighting


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def arena() -> AsyncIterator[Arena]:
    """Give a node whose guests can be told to misbehave; one for the drills of a module."""
    async with fighting() as it:
        yield it
