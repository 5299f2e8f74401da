"""The log as watchers see it: what is kept, and news of each commit in its order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from cellmesh.hypervisor.domain.event import Entry
from cellmesh.hypervisor.domain.vm import Vm
from cellmesh.hypervisor.store import Store
from cellmesh.hypervisor.store.changes import ALL
from cellmesh.mesh.watch import Change, Hub

_log = structlog.get_logger()
_PAGE = 256
_PAUSE = 1.0
# A commit seldom comes alone, and its caller waits for an answer: both come before who only watches.
_GATHER = 0.005
# Entries are shared by all watchers; a queue holds references, so room for a burst of a full node costs little.
_QUEUE = 8192


class Log:
    """The history of the node, and the hub its watchers listen to. Open it with `Log.opened`."""

    def __init__(self, store: Store, *, published: int) -> None:
        self._store = store
        # Known before anybody can watch: a relay that found out for itself would leave out what came meanwhile.
        self._published = published
        self.hub: Hub[Entry] = Hub(queue_size=_QUEUE)

    @classmethod
    async def opened(cls, store: Store) -> Log:
        """Return the log of a store; what is there now is history, and what comes after will be news."""
        async with store.reading() as reading:
            return cls(store, published=await reading.last_sequence())

    async def oldest(self) -> int:
        """Return the position of the oldest entry that may still be kept."""
        async with self._store.reading() as reading:
            return (await reading.node()).pruned_sequence + 1

    async def newest(self) -> int:
        """Return the position of the newest entry, 0 if there is none."""
        async with self._store.reading() as reading:
            return await reading.last_sequence()

    async def after(self, position: int, limit: int) -> Sequence[Change[Entry]]:
        """Return at most `limit` entries after a position, oldest first."""
        async with self._store.reading() as reading:
            entries = await reading.entries(after=position, limit=limit)
        return [Change(position=entry.sequence, item=entry) for entry in entries]

    async def events(self, *, after: int, limit: int, vm_id: str) -> Sequence[Entry]:
        """Return at most `limit` events after a position, oldest first; an empty `vm_id` is every VM."""
        async with self._store.reading() as reading:
            return await reading.entries(after=after, limit=limit, vm_id=vm_id, events_only=True)

    async def snapshot(self) -> tuple[int, Sequence[Vm]]:
        """Return every VM, and the position of the newest entry that they show."""
        async with self._store.reading() as reading:
            return await reading.last_sequence(), await reading.vms()

    async def relay(self) -> None:
        """Publish each entry once it is committed, until cancelled.

        What is published is read from the table, in its order, so that no commit can be overtaken or left out.
        """
        with self._store.changes.watched(ALL) as changed:
            while True:
                changed.clear()
                try:
                    await self._publish()
                except Exception as error:
                    # Watchers are late then, and lose nothing: the next look begins where this one did.
                    _log.error("log.relay_failed", again_in_s=_PAUSE, exc_info=error)
                    await asyncio.sleep(_PAUSE)
                    continue
                await changed.wait()
                await asyncio.sleep(_GATHER)

    async def _publish(self) -> None:
        """Publish what was committed since the last look."""
        while True:
            changes = await self.after(self._published, _PAGE)
            for change in changes:
                self.hub.publish(change)
                self._published = change.position
            if len(changes) < _PAGE:
                return
