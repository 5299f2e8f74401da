"""How SQLite is opened: WAL, one writer that also checkpoints, readers apart; each connection in a thread of its own.

Not by `sqlalchemy.ext.asyncio`: it brings the ORM with it, 7 MB of the 150 a node may take, and its driver goes to the
thread and back four times for a statement, where once will do.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
from sqlalchemy import Engine, text

from cellmesh.service.store.connection import Connection, Step, T
from cellmesh.service.store.errors import unavailable

_READERS = 2
_BUSY_MILLISECONDS = 5000
_COMMON = (f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}", "PRAGMA foreign_keys = ON", "PRAGMA cache_size = -512")
_WRITER = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA wal_autocheckpoint = 0", *_COMMON)
# Readers never checkpoint: a checkpoint racing the writer is the corruption window of older SQLite.
_READER = ("PRAGMA wal_autocheckpoint = 0", "PRAGMA query_only = ON", *_COMMON)


class SqliteBackend:
    """A database in a file, of mode 0600, that one process has open."""

    poll: float | None = None

    def __init__(self, path: Path) -> None:
        # The write-ahead log and its index get the mode that the database has when they are made.
        path.touch(mode=0o600)
        for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
            with contextlib.suppress(FileNotFoundError):
                file.chmod(0o600)
        # The driver's own implicit BEGIN is deferred and comes late; None leaves BEGIN to us.
        engine = sqlalchemy.create_engine(f"sqlite:///{path}", connect_args={"isolation_level": None})
        # It locks the database from its start, so no transaction fails half way for the lock of another.
        self.writer = Connection(_Thread(engine, _WRITER), begin=[text("BEGIN IMMEDIATE")])
        self.readers: Sequence[Connection] = [
            Connection(_Thread(engine, _READER), begin=[text("BEGIN")]) for _ in range(_READERS)
        ]

    async def maintain(self) -> None:
        """Move the write-ahead log into the database; no transaction may be open."""
        await self.writer.run(_checkpoint)

    async def close(self) -> None:
        """Close every connection."""
        for connection in (*self.readers, self.writer):
            await connection.close()


class _Thread:
    """Takes the steps of a connection in a thread."""

    def __init__(self, engine: Engine, pragmas: Sequence[str]) -> None:
        self._engine = engine
        self._pragmas = pragmas
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        self._opened: sqlalchemy.Connection | None = None

    def submit(self, step: Step[T]) -> asyncio.Future[T]:
        def taken() -> T:
            try:
                return step(self._connection())
            except Exception as error:
                if (passing := unavailable(error)) is not None:
                    raise passing from error
                raise

        return asyncio.get_running_loop().run_in_executor(self._thread, taken)

    async def close(self) -> None:
        await self.submit(sqlalchemy.Connection.close)
        # A thread left over keeps the interpreter from ending.
        self._thread.shutdown(wait=False)

    def _connection(self) -> sqlalchemy.Connection:
        if self._opened is None:
            self._opened = self._engine.connect()
            for pragma in self._pragmas:
                self._opened.exec_driver_sql(pragma)
            self._opened.commit()
        return self._opened


def _checkpoint(connection: sqlalchemy.Connection) -> None:
    # It cannot run inside a transaction; the one that ends here is SQLAlchemy's only.
    connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").close()
    connection.rollback()
