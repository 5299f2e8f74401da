"""How PostgreSQL is opened: one connection that writes, readers apart, each driven by a task of its own.

A writing transaction takes an advisory lock of its service first and holds it until it is committed. So sequences are
given in the order of commits, and who reads the journal up to its newest entry has left none out: an entry that is
still to be committed has a greater sequence than all that can be seen.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from cellmesh.service.store.connection import Connection, Step, T
from cellmesh.service.store.errors import unavailable

_READERS = 2
_POLL = 1.0
# A database that does not answer is as good as one that is not there.
_SECONDS_TO_CONNECT = 10
_SECONDS_TO_ANSWER = 30


class PostgresBackend:
    """A database of a PostgreSQL server; several processes may have it open."""

    poll: float | None = _POLL

    def __init__(self, url: str, *, service: str) -> None:
        engine = create_async_engine(
            make_url(url).set(drivername="postgresql+asyncpg"),
            poolclass=NullPool,
            connect_args={"timeout": _SECONDS_TO_CONNECT, "command_timeout": _SECONDS_TO_ANSWER},
        )
        reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        lock = text(f"SELECT pg_advisory_xact_lock({_lock_of(service)})")
        self.writer = Connection(_Task(engine), begin=[lock])
        self.readers: Sequence[Connection] = [Connection(_Task(reading), begin=[]) for _ in range(_READERS)]

    async def maintain(self) -> None:
        """Do nothing: the server does."""

    async def close(self) -> None:
        """Close every connection."""
        for connection in (*self.readers, self.writer):
            await connection.close()


class _Task:
    """Takes the steps of a connection in a task, so that a caller who gives up cannot cut one short."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._steps: asyncio.Queue[tuple[Step[Any], asyncio.Future[Any]] | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._work())

    def submit(self, step: Step[T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._steps.put_nowait((step, future))
        return future

    async def close(self) -> None:
        self._steps.put_nowait(None)
        await self._task

    async def _work(self) -> None:
        connection: AsyncConnection | None = None
        while (submitted := await self._steps.get()) is not None:
            step, future = submitted
            try:
                if connection is None:
                    connection = await self._engine.connect()
                result = await connection.run_sync(step)
            except Exception as error:
                if not future.cancelled():
                    future.set_exception(unavailable(error) or error)
            else:
                if not future.cancelled():
                    future.set_result(result)
        if connection is not None:
            await connection.close()


def _lock_of(service: str) -> int:
    """Return the key of a service's advisory lock: a number of 63 bits."""
    return int.from_bytes(hashlib.sha256(f"cellmesh:{service}".encode()).digest()[:8], "big") >> 1
