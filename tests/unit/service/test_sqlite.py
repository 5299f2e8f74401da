"""What is SQLite's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.notes import Notes

pytestmark = pytest.mark.asyncio


async def test_maintenance_empties_the_write_ahead_log(tmp_path: Path) -> None:
    """It moves the log into the database, as nothing else does."""
    path, log = tmp_path / "notes.db", tmp_path / "notes.db-wal"
    async with Notes.opened(path) as notes:
        async with notes.transaction() as tx:
            await tx.add_named("a")
        assert log.stat().st_size > 0
        await notes.maintain()
        assert log.stat().st_size == 0


async def test_the_database_is_its_owners(tmp_path: Path) -> None:
    """Nobody else may read it or its log."""
    async with Notes.opened(tmp_path / "notes.db") as notes:
        async with notes.transaction() as tx:
            await tx.add_named("a")
        assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {
            "notes.db": "0o600",
            "notes.db-wal": "0o600",
            "notes.db-shm": "0o600",
        }
