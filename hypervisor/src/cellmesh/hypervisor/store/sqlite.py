"""How SQLite is opened: WAL, one writer that also checkpoints, readers apart."""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import pysqlite3  # type: ignore[import-untyped]  # the wheel has no types
except ImportError:
    # The interpreter's SQLite will do: what the newer one mends needs a second checkpointer, and there is none.
    pass
else:
    # SQLite before 3.51.3 can corrupt a WAL database; the interpreter's may be older than the wheel's. This must come
    # before anything imports sqlite3, which aiosqlite does at import.
    sys.modules["sqlite3"] = pysqlite3
    sys.modules["sqlite3.dbapi2"] = pysqlite3.dbapi2

from sqlalchemy import Connection, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

_READERS = 2
_OUTSIDE = "cellmesh_outside_transaction"
# Execution options of a connection that must not begin a transaction: a checkpoint cannot run inside one.
OUTSIDE_TRANSACTION = {_OUTSIDE: True}
_BUSY_MILLISECONDS = 5000
_COMMON = (f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}", "PRAGMA foreign_keys = ON", "PRAGMA cache_size = -2048")


def open_writer(path: Path) -> AsyncEngine:
    """Return the engine of the one writing connection; every transaction takes the write lock at its start."""
    pragmas = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA wal_autocheckpoint = 0", *_COMMON)
    return _open(path, connections=1, pragmas=pragmas, begin="BEGIN IMMEDIATE")


def open_readers(path: Path) -> AsyncEngine:
    """Return the engine of the connections that only read; each transaction sees one moment."""
    # Readers never checkpoint: a checkpoint racing the writer is the corruption window of older SQLite.
    pragmas = ("PRAGMA wal_autocheckpoint = 0", "PRAGMA query_only = ON", *_COMMON)
    return _open(path, connections=_READERS, pragmas=pragmas, begin="BEGIN")


def _open(path: Path, *, connections: int, pragmas: tuple[str, ...], begin: str) -> AsyncEngine:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}", poolclass=AsyncAdaptedQueuePool, pool_size=connections, max_overflow=0
    )

    def connected(connection: DBAPIConnection, _record: object) -> None:
        # The driver's own implicit BEGIN is deferred and comes late; None leaves BEGIN to us.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()

    def began(connection: Connection) -> None:
        if not connection.get_execution_options().get(_OUTSIDE):
            connection.exec_driver_sql(begin)

    event.listen(engine.sync_engine, "connect", connected)
    event.listen(engine.sync_engine, "begin", began)
    return engine
