"""Each test of the store runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from support.notes import Notes
from support.postgres import PostgresServer


@pytest.fixture(scope="package")
def postgres() -> Iterator[PostgresServer]:
    """Give a server that runs."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Give the place of an empty database."""
    if request.param == "sqlite":
        return tmp_path / "notes.db"
    return request.getfixturevalue("postgres").create_database_now()


@pytest_asyncio.fixture
async def notes(location: Path | str) -> AsyncIterator[Notes]:
    """Give an empty store."""
    async with Notes.opened(location) as opened:
        yield opened
