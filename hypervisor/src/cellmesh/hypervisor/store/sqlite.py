"""How SQLite is opened: WAL, one writer that also checkpoints, readers apart; each connection in a thread of its own.

Not by `sqlalchemy.ext.asyncio`: it brings the ORM with it, 7 MB of the 150 a node may take, and its driver goes to the
thread and back four times for a statement, where once will do.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

try:
    import pysqlite3  # type: ignore[import-untyped]  # the wheel has no types
except ImportError:
    # The interpreter's SQLite will do: what the newer one mends needs a second checkpointer, and there is none.
    pass
else:
    # SQLite before 3.51.3 can corrupt a WAL database; the interpreter's may be older than the wheel's. This must come
    # before anything imports sqlite3, which the first engine does.
    sys.modules["sqlite3"] = pysqlite3
    sys.modules["sqlite3.dbapi2"] = pysqlite3.dbapi2

import sqlalchemy
from sqlalchemy import Engine, Executable, RowMapping

_READERS = 2
_BUSY_MILLISECONDS = 5000
_COMMON = (f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}", "PRAGMA foreign_keys = ON", "PRAGMA cache_size = -512")
_WRITER = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA wal_autocheckpoint = 0", *_COMMON)
# Readers never checkpoint: a checkpoint racing the writer is the corruption window of older SQLite.
_READER = ("PRAGMA wal_autocheckpoint = 0", "PRAGMA query_only = ON", *_COMMON)
T = TypeVar("T")
Values = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""What a statement's parameters are, or those of several executions."""


class Connection:
    """One connection. It does what it is told in order, so nobody need wait for what he no longer wants."""

    def __init__(self, engine: Engine, *, pragmas: Sequence[str], begin: str) -> None:
        self._engine = engine
        self._pragmas = pragmas
        self._begin = begin
        self._begins = False
        self._writes: list[tuple[Executable, Values]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        self._opened: sqlalchemy.Connection | None = None

    def begin(self) -> None:
        """Begin a transaction with the next step, which fails if that cannot be; `commit` or `rollback` must follow."""
        # Not a step of its own: to the thread and back costs as much as most statements.
        self._begins = True

    def write(self, statement: Executable, values: Values) -> None:
        """Execute a statement that returns nothing with the next step, which fails if this does."""
        self._writes.append((statement, values))

    async def execute(self, statement: Executable, values: Values | None = None) -> Sequence[RowMapping]:
        """Execute a statement, once for each of several values, and return its rows."""

        def executed(connection: sqlalchemy.Connection) -> Sequence[RowMapping]:
            result = connection.execute(statement, values)
            return result.mappings().all() if result.returns_rows else ()

        return await self.run(executed)

    async def scalar(self, statement: Executable) -> int:
        """Execute a statement that returns one number."""
        return await self.run(lambda connection: int(connection.execute(statement).scalar_one()))

    async def run(self, step: Callable[[sqlalchemy.Connection], T]) -> T:
        """Take a step in the connection's thread."""
        return await self._asked(step)

    async def commit(self, then: Callable[[], object]) -> None:
        """Commit, and call `then` once that is done, even if who waits for it is cancelled meanwhile.

        What fails is rolled back.
        """
        committed = self._asked(_commit)
        committed.add_done_callback(lambda done: None if done.exception() else then())
        await asyncio.shield(committed)

    async def rollback(self) -> None:
        """End the transaction, if there is one, and undo what it did."""
        self._writes.clear()
        await asyncio.shield(self._asked(sqlalchemy.Connection.rollback))

    async def close(self) -> None:
        """Close the connection and end its thread: one left over keeps the interpreter from ending."""
        await self.run(sqlalchemy.Connection.close)
        self._thread.shutdown(wait=False)

    def _asked(self, step: Callable[[sqlalchemy.Connection], T]) -> asyncio.Future[T]:
        begins, self._begins = self._begins, False
        writes, self._writes = self._writes, []

        def taken() -> T:
            connection = self._connection()
            try:
                if begins:
                    connection.exec_driver_sql(self._begin)
                for statement, values in writes:
                    connection.execute(statement, values)
                return step(connection)
            except BaseException:
                if step is _commit:
                    connection.rollback()
                raise

        return asyncio.get_running_loop().run_in_executor(self._thread, taken)

    def _connection(self) -> sqlalchemy.Connection:
        if self._opened is None:
            self._opened = self._engine.connect()
            for pragma in self._pragmas:
                self._opened.exec_driver_sql(pragma)
            self._opened.commit()
        return self._opened


def _commit(connection: sqlalchemy.Connection) -> None:
    connection.commit()


def connections(path: Path) -> tuple[Connection, Sequence[Connection]]:
    """Return the one connection that writes, whose transactions lock the database from their start, and the readers."""
    # The driver's own implicit BEGIN is deferred and comes late; None leaves BEGIN to us.
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", connect_args={"isolation_level": None})
    writer = Connection(engine, pragmas=_WRITER, begin="BEGIN IMMEDIATE")
    return writer, [Connection(engine, pragmas=_READER, begin="BEGIN") for _ in range(_READERS)]
