"""What a transaction costs a service, alone and among others that want to commit at the same time."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from bench.conftest import Interleave, Record
from cellmesh.service.audit.seals import Seals
from cellmesh.service.audit.verify import verify
from cellmesh.service.store.audit import length_prefixed
from sample.store import ADD_NOTE
from support import tampering
from support.intents import intent
from support.notes import Notes

Change = Callable[[int], None]
Plain = Callable[[int], float]
_BURST = 200
# Measured: 2.3 to 3.1 alone, 0.5 to 0.7 in a burst.
_ALONE_RATIO, _BURST_RATIO = 5.0, 1.0


_TABLES = ("notes", "journal", "answers")
_INSERTS = ("INSERT INTO notes VALUES (?)", "INSERT INTO journal VALUES (?)", "INSERT INTO answers VALUES (?)")
_AUDITED = 5000
# Measured: 20 to 26.
_VERIFY_RATIO = 60.0
# Measured: 1.2 to 1.3, that is a fifth of a millisecond, with a disk that is quick.
_AUDIT_RATIO = 1.5


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
        note="one transaction with change, entry, answer; floor: as many rows with sqlite3 alone",
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


def test_store_audit(runner: asyncio.Runner, tmp_path: Path, interleave: Interleave, record: Record) -> None:
    """Prove that an entry in the audit log costs little beside the change that it is of."""
    numbers = itertools.count()

    async def plain() -> None:
        async with notes.transaction() as tx:
            await tx.add_named(str(next(numbers)))

    async def audited() -> None:
        async with notes.transaction() as tx:
            await tx.add_audited(str(next(numbers)))

    def floor() -> float:
        begun = time.perf_counter()
        runner.run(plain())
        return time.perf_counter() - begun

    stack = AsyncExitStack()
    try:
        notes = runner.run(stack.enter_async_context(Notes.opened(tmp_path / "notes.db")))
        samples, floors = interleave(lambda: runner.run(audited()), floor, rounds=200, warmup=5)
    finally:
        runner.run(stack.aclose())
    record(
        "store_audit",
        [1000 * sample for sample in samples],
        floors=[1000 * sample for sample in floors],
        unit="ms",
        max_ratio=_AUDIT_RATIO,
        emulated=False,
        note="one transaction with change, entry and audit; floor: the same without the audit",
    )


def test_audit_verify(runner: asyncio.Runner, tmp_path: Path, interleave: Interleave, record: Record) -> None:
    """Prove that a check of the audit log goes through its rows at a rate that SHA-256 over the same bytes bounds."""

    async def fill(notes: Notes) -> None:
        for _ in range(_AUDITED // 500):
            async with notes.transaction() as tx:
                for _ in range(500):
                    await tx.audit(ADD_NOTE, resource="notes", facts={"characters": 7})

    async def check() -> None:
        verdict = await verify(seals)
        assert (verdict.fault, verdict.rows) == ("", _AUDITED)

    def floor() -> float:
        begun = time.perf_counter()
        for row in hashed:
            hashlib.sha256(row).hexdigest()
        return time.perf_counter() - begun

    stack = AsyncExitStack()
    try:
        notes = runner.run(stack.enter_async_context(Notes.opened(tmp_path / "notes.db")))
        seals = runner.run(stack.enter_async_context(Seals.opened(notes, tmp_path / "audit")))
        runner.run(fill(notes))
        rows = runner.run(tampering.load(notes, tmp_path / "audit" / "heads")).rows
        hashed = [length_prefixed([str(value).encode() for value in row.values()]) for row in rows]
        samples, floors = interleave(lambda: runner.run(check()), floor, rounds=5, warmup=1)
    finally:
        runner.run(stack.aclose())
    rate = _AUDITED / sorted(samples)[len(samples) // 2]
    record(
        "audit_verify",
        [1000 * sample for sample in samples],
        floors=[1000 * sample for sample in floors],
        unit="ms",
        max_ratio=_VERIFY_RATIO,
        emulated=False,
        note=f"{_AUDITED} rows of an audit log, {rate:.0f} a second; floor: SHA-256 alone over as many bytes",
    )
