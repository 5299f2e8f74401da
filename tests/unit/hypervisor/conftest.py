"""A real store in a directory of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from cellmesh.hypervisor.store import Store


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Give an empty store."""
    async with Store.opened(tmp_path / "hypervisor.db") as opened:
        yield opened
