"""The open database of a service: transactions one after another, several to a commit, news of each after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar, cast

from sqlalchemy import text

from cellmesh.service.store import schema as tables
from cellmesh.service.store.audit import Who
from cellmesh.service.store.backend import Backend, backend_of
from cellmesh.service.store.changes import Changes
from cellmesh.service.store.connection import Connection
from cellmesh.service.store.transaction import Reading, Statements, Transaction

R = TypeVar("R", bound=Reading)
T = TypeVar("T", bound=Transaction)
_KEPT_ENTRIES = 100_000
_KEPT_ANSWERS = timedelta(hours=24)
_SAVE, _UNDO, _KEEP = text("SAVEPOINT one"), text("ROLLBACK TO SAVEPOINT one"), text("RELEASE SAVEPOINT one")


class Store(Generic[R, T]):
    """The state of a service. A service derives its own and opens it with `opened`."""

    schema: ClassVar[tables.Schema]
    reading_type: ClassVar[type[Reading]] = Reading
    transaction_type: ClassVar[type[Transaction]] = Transaction

    def __init__(
        self,
        backend: Backend,
        *,
        clock: Callable[[], datetime],
        trace_id: Callable[[], str],
        who: Callable[[], Who | None],
    ) -> None:
        self._backend = backend
        self._writer = backend.writer
        self._readers: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for reader in backend.readers:
            self._readers.put_nowait(reader)
        self._clock = clock
        self._trace_id = trace_id
        self._who = who
        self._self = Who(role="self", name=self.schema.service)
        self._statements = Statements(self.schema)
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._group: _Group | None = None
        self._committers: set[asyncio.Task[None]] = set()
        self.changes = Changes()
        self.poll = backend.poll
        """Seconds after which to look for commits of other processes; None if there are none."""

    @classmethod
    @asynccontextmanager
    async def opened(
        cls,
        location: Path | str,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        trace_id: Callable[[], str] = lambda: "",
        who: Callable[[], Who | None] = lambda: None,
    ) -> AsyncIterator[Self]:
        """Open the database at a path (SQLite) or a URL (PostgreSQL), making or migrating its tables.

        `who` says whose call it is that a transaction serves, None outside of one: then it is the service itself.

        Raises SchemaTooNew if a later version wrote it, StoreUnavailable if it cannot be reached.
        """
        backend = backend_of(location, service=cls.schema.service)
        try:
            store = cls(backend, clock=clock, trace_id=trace_id, who=who)
            await store._prepare()
            yield store
            await store._settle()
        finally:
            await backend.close()

    async def _prepare(self) -> None:
        self._writer.begin()
        await self._writer.run(lambda connection: tables.prepare(connection, self.schema))
        await self._writer.commit()
        await self.load()

    async def load(self) -> None:
        """Read what the service keeps in memory; called once, when the tables are there."""

    def committed(self, transaction: T) -> None:
        """Take over what a transaction changed into memory; called after its commit, before anybody is notified."""

    def now(self) -> datetime:
        """Return the time as transactions have it."""
        return self._clock()

    @asynccontextmanager
    async def transaction(self, *, alone: bool = False) -> AsyncIterator[T]:
        """Enter a transaction: committed at the end, rolled back on any error; watchers are notified after the commit.

        Transactions run one after another. Those that wait behind one another share a commit, so one may see changes
        that are not committed yet; what `committed` keeps in memory is exact in one that is `alone`.

        Raises StoreUnavailable.
        """
        await self._take_turn()
        try:
            group = await self._join(alone=alone)
            transaction = cast(
                "T",
                self.transaction_type(
                    self._writer,
                    self._statements,
                    now=self._clock(),
                    trace_id=self._trace_id(),
                    who=self._who() or self._self,
                ),
            )
            try:
                yield transaction
                await self._leave(group, transaction, alone=alone)
            except BaseException:
                await self._undo(group)
                raise
        finally:
            self._turn.release()
        await group.wait()

    async def _take_turn(self) -> None:
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1

    async def _join(self, *, alone: bool) -> _Group:
        """Return the group of transactions that this one is committed with."""
        group = self._group
        if group is not None and (alone or group.is_committing):
            # It is on its way, or is now: what it changed is in memory then.
            self._commit(group)
            await group.done.wait()
            group = None
        if group is None:
            group = self._group = _Group()
            self._writer.begin()
        elif group.members:
            self._writer.write(_SAVE)
        return group

    async def _leave(self, group: _Group, transaction: T, *, alone: bool) -> None:
        """Keep what a transaction did, and have it committed."""
        if alone or not (self._waiting or group.members):
            # Nobody to share with: what was written goes with the commit.
            group.members.append(transaction)
            self._commit(group)
            await group.wait()
            return
        await self._writer.flush()
        if group.members:
            # With the next step, not awaited: whoever is cancelled has either kept all by now, or can still undo it.
            self._writer.write(_KEEP)
        group.members.append(transaction)
        if group.committer is None:
            # Behind all who wait now, so that they come along.
            group.committer = asyncio.create_task(self._commit_later(group))
            self._committers.add(group.committer)
            group.committer.add_done_callback(self._committers.discard)

    async def _undo(self, group: _Group) -> None:
        """Undo what a transaction did and leave the others of its group as they are, unless the database is gone."""
        if group.is_committing:
            return
        if self._writer.forget(_SAVE):
            return
        if group.members:
            self._writer.write(_UNDO)
            self._writer.write(_KEEP)
            try:
                await self._writer.flush()
            except Exception as error:
                group.fail(error)
            else:
                return
        self._group = None
        await self._writer.rollback()

    async def _commit_later(self, group: _Group) -> None:
        await self._take_turn()
        try:
            if self._group is group:
                self._commit(group)
                await group.done.wait()
        finally:
            self._turn.release()

    def _commit(self, group: _Group) -> None:
        if group.is_committing:
            return
        group.is_committing = True
        self._writer.commit().add_done_callback(lambda done: self._end(group, done))

    def _end(self, group: _Group, committed: asyncio.Future[None]) -> None:
        if self._group is group:
            self._group = None
        if (error := committed.exception()) is not None:
            group.fail(error)
            return
        for transaction in group.members:
            self.committed(cast("T", transaction))
            self.changes.notify(transaction.touched)
            for follow_up in transaction.follow_ups:
                follow_up()
        group.done.set()

    async def _settle(self) -> None:
        """Let what is still to be committed be committed."""
        while self._committers:
            await asyncio.wait(self._committers)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[R]:
        """Enter a read-only transaction that sees one moment. Raises StoreUnavailable."""
        reader = await self._readers.get()
        try:
            reader.begin()
            yield cast("R", self.reading_type(reader, self._statements))
        finally:
            self._readers.put_nowait(reader)
            await reader.rollback()

    async def maintain(self) -> None:
        """Forget what is kept no longer, and let the database clean up."""
        async with self.transaction() as tx:
            await tx.prune(keep_entries=_KEPT_ENTRIES, answers_before=tx.now - _KEPT_ANSWERS)
        await self._take_turn()
        try:
            if self._group is not None:
                self._commit(self._group)
                await self._group.done.wait()
            await self._backend.maintain()
        finally:
            self._turn.release()


class _Group:
    """Transactions that share a commit."""

    def __init__(self) -> None:
        self.members: list[Transaction] = []
        self.committer: asyncio.Task[None] | None = None
        self.is_committing = False
        self.done = asyncio.Event()
        self._error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """End without a commit."""
        self._error = error
        self.done.set()

    async def wait(self) -> None:
        """Wait for the commit; raise what kept it from being made."""
        await self.done.wait()
        if self._error is not None:
            raise self._error
