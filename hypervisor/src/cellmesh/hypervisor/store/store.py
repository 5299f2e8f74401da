"""The open database: one transaction at a time, and word to whoever waits after each commit."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from cellmesh.hypervisor.store.changes import Changes
from cellmesh.hypervisor.store.mirror import Mirror
from cellmesh.hypervisor.store.schema import NODE, migrate
from cellmesh.hypervisor.store.sqlite import OUTSIDE_TRANSACTION, open_readers, open_writer
from cellmesh.hypervisor.store.transaction import Reading, Transaction

_KEPT_ENTRIES = 100_000
_KEPT_ANSWERS = timedelta(hours=24)


class Store:
    """The state of the node. Open it with `Store.opened`."""

    def __init__(
        self, writer: AsyncEngine, readers: AsyncEngine, *, clock: Callable[[], datetime], trace_id: Callable[[], str]
    ) -> None:
        self._writer = writer
        self._readers = readers
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
        writer, readers = open_writer(path), open_readers(path)
        try:
            async with writer.begin() as connection:
                await connection.run_sync(migrate)
                if (await connection.execute(select(NODE.c.id))).first() is None:
                    await connection.execute(
                        insert(NODE).values(
                            id=1,
                            node_id=str(uuid.uuid4()),
                            draining=False,
                            pruned_sequence=0,
                            token_key=secrets.token_bytes(32),
                        )
                    )
            path.chmod(0o600)
            store = cls(writer, readers, clock=clock, trace_id=trace_id)
            async with store.reading() as reading:
                await store.mirror.load(reading)
            yield store
        finally:
            # Each connection is a thread; one left open keeps the interpreter from ending.
            await readers.dispose()
            await writer.dispose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Enter a transaction: committed at the end, rolled back on any error; watchers hear of it after the commit."""
        async with self._writing:
            async with self._writer.begin() as connection:
                transaction = Transaction(connection, now=self._clock(), trace_id=self._trace_id())
                yield transaction
            self.mirror.apply(transaction)
            self.changes.notify(transaction.touched)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Reading]:
        """Enter a read-only transaction that sees one moment."""
        async with self._readers.connect() as connection, connection.begin():
            yield Reading(connection)

    async def maintain(self) -> None:
        """Forget what is kept no longer, and move the log of SQLite into its database."""
        async with self.transaction() as tx:
            await tx.prune(keep_entries=_KEPT_ENTRIES, answers_before=tx.now - _KEPT_ANSWERS)
        async with self._writing, self._writer.connect() as connection:
            await connection.execution_options(**OUTSIDE_TRANSACTION)
            await connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
