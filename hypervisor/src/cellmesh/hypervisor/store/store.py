"""The open database: one transaction at a time, and word to whoever waits after each commit."""

from __future__ import annotations

import asyncio
import functools
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection as SyncConnection
from sqlalchemy import insert, select

from cellmesh.hypervisor.store.changes import Changes
from cellmesh.hypervisor.store.mirror import Mirror
from cellmesh.hypervisor.store.schema import NODE, migrate
from cellmesh.hypervisor.store.sqlite import Connection, connections
from cellmesh.hypervisor.store.transaction import Reading, Transaction

_KEPT_ENTRIES = 100_000
_KEPT_ANSWERS = timedelta(hours=24)


class Store:
    """The state of the node. Open it with `Store.opened`."""

    def __init__(
        self,
        writer: Connection,
        readers: Sequence[Connection],
        *,
        clock: Callable[[], datetime],
        trace_id: Callable[[], str],
    ) -> None:
        self._writer = writer
        self._readers: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for reader in readers:
            self._readers.put_nowait(reader)
        self._clock = clock
        self._trace_id = trace_id
        self._writing = asyncio.Lock()
        self.changes = Changes()
        self.mirror = Mirror()

    @classmethod
    @asynccontextmanager
    async def opened(
        cls,
        path: Path,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        trace_id: Callable[[], str] = lambda: "",
    ) -> AsyncIterator[Store]:
        """Open the database at `path`, making or migrating it; SchemaTooNew if a later version wrote it."""
        writer, readers = connections(path)
        try:
            writer.begin()
            await writer.run(_prepare)
            await writer.commit(lambda: None)
            path.chmod(0o600)
            store = cls(writer, readers, clock=clock, trace_id=trace_id)
            async with store.reading() as reading:
                await store.mirror.load(reading)
            yield store
        finally:
            for connection in (*readers, writer):
                await connection.close()

    def now(self) -> datetime:
        """Return the time as transactions have it."""
        return self._clock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Enter a transaction: committed at the end, rolled back on any error; watchers hear of it after the commit."""
        async with self._writing:
            try:
                self._writer.begin()
                transaction = Transaction(self._writer, now=self._clock(), trace_id=self._trace_id())
                yield transaction
            except BaseException:
                await self._writer.rollback()
                raise
            await self._writer.commit(then=functools.partial(self._tell, transaction))

    def _tell(self, committed: Transaction) -> None:
        self.mirror.apply(committed)
        self.changes.notify(committed.touched)
        for follow_up in committed.follow_ups:
            follow_up()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Reading]:
        """Enter a read-only transaction that sees one moment."""
        reader = await self._readers.get()
        try:
            reader.begin()
            yield Reading(reader)
        finally:
            self._readers.put_nowait(reader)
            await reader.rollback()

    async def maintain(self) -> None:
        """Forget what is kept no longer, and move the log of SQLite into its database."""
        async with self.transaction() as tx:
            await tx.prune(keep_entries=_KEPT_ENTRIES, answers_before=tx.now - _KEPT_ANSWERS)
        async with self._writing:
            await self._writer.run(_checkpoint)


def _prepare(connection: SyncConnection) -> None:
    migrate(connection)
    if connection.execute(select(NODE.c.id)).first() is None:
        node = {"node_id": str(uuid.uuid4()), "draining": False, "token_key": secrets.token_bytes(32)}
        connection.execute(insert(NODE).values(id=1, pruned_sequence=0, **node))


def _checkpoint(connection: SyncConnection) -> None:
    # It cannot run inside a transaction; the one that ends here is SQLAlchemy's only.
    connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").close()
    connection.rollback()
