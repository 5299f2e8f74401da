"""What a transaction costs a service, alone and among others that want to commit at the same time."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from bench.conftest import Interleave, Record
from support.intents import intent
from support.notes import Notes

Change = Callable[[int], None]
Plain = Callable[[int], float]
_BURST = 200
# Measured: 2.3 to 3.1 alone, 0.5 to 0.7 in a burst.
_ALONE_RATIO, _BURST_RATIO = 5.0, 1.0


_TABLES = ("notes", "journal", "answers")
_INSERTS = ("INSERT INTO notes VALUES (?)", "INSERT INTO journal VALUES (?)", "INSERT INTO answers VALUES (?)")


@pytest.fixture
def change(runner: asyncio.Runner, tmp_path: Path) -> Iterator[Change]:
    """Give what changes a store as many times at once."""
    numbers = itertools.count()

    async def one() -> None:
        name = str(next(numbers))
        request = intent(request_id=name)
        async with notes.transaction() as tx:
            assert await tx.answered(request) is None
            await tx.add_named(name)
            await tx.answer(request, name)

    async def all_at_once(count: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                tasks.create_task(one())

    stack = AsyncExitStack()
    try:
        notes = runner.run(stack.enter_async_context(Notes.opened(tmp_path / "notes.db")))
        yield lambda count: runner.run(all_at_once(count))
    finally:
        runner.run(stack.aclose())


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Plain]:
    """Give what stores the same rows with sqlite3 alone, one transaction after another, and returns the seconds."""
    numbers = itertools.count()
    with closing(sqlite3.connect(tmp_path / "floor.db", isolation_level=None)) as floor:
        floor.execute("PRAGMA journal_mode = WAL")
        floor.execute("PRAGMA synchronous = FULL")
        for table in _TABLES:
            floor.execute(f"CREATE TABLE {table} (name TEXT PRIMARY KEY)")

        def run(count: int) -> float:
            begun = time.perf_counter()
            for name in itertools.islice(numbers, count):
                floor.execute("BEGIN IMMEDIATE")
                for insert in _INSERTS:
                    floor.execute(insert, (name,))
                floor.execute("COMMIT")
            return time.perf_counter() - begun

        yield run


def test_store_commit(change: Change, plain: Plain, interleave: Interleave, record: Record) -> None:
    """Prove that a change with its entry and its answer costs little beside its commit."""
    samples, floors = interleave(lambda: change(1), lambda: plain(1), rounds=50, warmup=2)
    record(
        "store_commit",
        [1000 * sample for sample in samples],
        floors=[1000 * sample for sample in floors],
        unit="ms",
        max_ratio=_ALONE_RATIO,
        emulated=False,
        note="one transaction with change, entry and answer; floor: as many rows with sqlite3 alone",
    )


def test_store_burst(change: Change, plain: Plain, interleave: Interleave, record: Record) -> None:
    """Prove that transactions that come together share commits."""
    samples, floors = interleave(lambda: change(_BURST), lambda: plain(_BURST), rounds=5, warmup=1)
    record(
        "store_burst",
        [1000 * sample for sample in samples],
        floors=[1000 * sample for sample in floors],
        unit="ms",
        max_ratio=_BURST_RATIO,
        emulated=False,
        note=f"{_BURST} transactions at once; floor: as many with sqlite3 alone, one after another",
    )
