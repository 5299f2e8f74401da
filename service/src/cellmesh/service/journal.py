"""The journal of a service as its watchers see it: the entries that are kept, and each new one after its commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, Generic, Protocol, TypeVar, cast

import structlog
from sqlalchemy import RowMapping

from cellmesh.mesh.watch import HEARTBEAT, Bookmark, Change, Hub, follow
from cellmesh.service.store import Reading, Store
from cellmesh.service.store.changes import ALL

_log = structlog.get_logger()
_PAGE = 256
_RETRY = 1.0
# A commit seldom comes alone, and its caller waits for an answer: both come before watchers.
_GATHER = 0.005
# Entries are shared by all watchers; a queue holds references, so room for a burst of a full node costs little.
_QUEUE = 8192


class Sequenced(Protocol):
    """An entry of a journal."""

    @property
    def sequence(self) -> int:
        """Return its place in the journal, from 1."""


E = TypeVar("E", bound=Sequenced)


class Journal(Generic[E]):
    """The entries of a store's journal, and the hub that publishes new ones. Open it with `Journal.opened`."""

    def __init__(self, store: Store[Any, Any], entry: Callable[[RowMapping], E], *, published: int) -> None:
        self._store = store
        self._entry = entry
        # Known before anybody can watch: a relay that found out for itself would leave out what came meanwhile.
        self._published = published
        self.hub: Hub[E] = Hub(queue_size=_QUEUE)

    @classmethod
    async def opened(cls, store: Store[Any, Any], entry: Callable[[RowMapping], E]) -> Journal[E]:
        """Return the journal of a store, whose rows `entry` reads; `relay` publishes what comes after now."""
        async with store.reading() as reading:
            return cls(store, entry, published=await reading.last_sequence())

    async def oldest(self) -> int:
        """Return the position of the oldest entry that may still be kept."""
        async with self._store.reading() as reading:
            return cast("int", await reading.pruned_sequence()) + 1

    async def newest(self) -> int:
        """Return the position of the newest entry, 0 if there is none."""
        async with self._store.reading() as reading:
            return cast("int", await reading.last_sequence())

    async def after(self, position: int, limit: int) -> Sequence[Change[E]]:
        """Return at most `limit` entries after a position, oldest first."""
        async with self._store.reading() as reading:
            rows = await cast("Reading", reading).rows(after=position, limit=limit)
        return [Change(position=entry.sequence, item=entry) for entry in map(self._entry, rows)]

    async def follow(self, position: int, wanted: Callable[[E], bool]) -> AsyncGenerator[Change[E] | Bookmark, None]:
        """Yield each entry after `position` that is wanted, and bookmarks also while others keep the journal busy.

        Raises ResumeTokenExpired if entries after `position` are no longer kept, WatcherTooSlow.
        """
        last = time.monotonic()
        following = cast("AsyncGenerator[Change[E] | Bookmark, None]", follow(self.hub, self, position))
        async with aclosing(following) as changes:
            async for change in changes:
                if isinstance(change, Bookmark) or wanted(change.item):
                    yield change
                elif time.monotonic() - last >= HEARTBEAT:
                    yield Bookmark(position=change.position)
                else:
                    continue
                last = time.monotonic()

    async def relay(self) -> None:
        """Publish each entry once it is committed, until cancelled.

        Entries are read from the table, in its order, so that none can be overtaken or left out.
        """
        with self._store.changes.watched(ALL) as changed:
            while True:
                changed.clear()
                try:
                    await self._publish()
                except Exception as error:
                    # Watchers are late then, and lose nothing: the next try begins where this one did.
                    _log.error("journal.relay_failed", retry_s=_RETRY, exc_info=error)
                    await asyncio.sleep(_RETRY)
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._store.poll):
                        await changed.wait()
                await asyncio.sleep(_GATHER)

    async def _publish(self) -> None:
        """Publish what was committed since the last time."""
        while True:
            changes = await self.after(self._published, _PAGE)
            for change in changes:
                self.hub.publish(change)
                self._published = change.position
            if len(changes) < _PAGE:
                return
