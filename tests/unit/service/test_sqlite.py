"""What is SQLite's own."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from cellmesh.service.audit.seals import Seals
from cellmesh.service.audit.verify import verify
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


async def test_one_that_is_cancelled_at_its_end_undoes_itself_alone(tmp_path: Path) -> None:
    """Those that share its commit are committed."""
    go, entered, ending = threading.Event(), asyncio.Event(), asyncio.Event()
    held: list[asyncio.Future[bool]] = []

    async def add(notes: Notes, name: str) -> None:
        async with notes.transaction() as tx:
            if name == "first":
                # Others come in behind it, so that it does not commit by itself.
                entered.set()
                await asyncio.sleep(0.05)
            if name == "second":
                await tx.names()
                # What its thread does before it gets to the end of this transaction.
                held.append(notes._writer.submit(lambda _: go.wait(60)))
                ending.set()
            await tx.add_named(name)

    async with Notes.opened(tmp_path / "notes.db") as notes, asyncio.timeout(120):
        first = asyncio.create_task(add(notes, "first"))
        await entered.wait()
        second, third = (asyncio.create_task(add(notes, name)) for name in ("second", "third"))
        await ending.wait()
        await asyncio.sleep(0)
        second.cancel()
        go.set()
        outcomes = await asyncio.gather(first, second, third, return_exceptions=True)
        assert [type(outcome).__name__ for outcome in outcomes] == ["NoneType", "CancelledError", "NoneType"]
        async with notes.reading() as reading:
            assert list(await reading.names()) == ["first", "third"]


async def test_an_audit_row_that_cannot_be_read_is_found(tmp_path: Path) -> None:
    """A column of SQLite takes what is no text; the check names the row."""
    async with Notes.opened(tmp_path / "notes.db") as notes, Seals.opened(notes, tmp_path / "audit") as seals:
        for number in range(5):
            async with notes.transaction() as tx:
                await tx.add_audited(str(number))
        async with notes.transaction() as tx:
            change = text("UPDATE audit SET user_id = CAST(X'FF' AS TEXT) WHERE sequence = 4")
            await tx.step(lambda connection: connection.execute(change) and None)
        verdict = await verify(seals)
    assert (verdict.wrong_row, verdict.rows) == (4, 3)
    assert "cannot be read" in verdict.fault
