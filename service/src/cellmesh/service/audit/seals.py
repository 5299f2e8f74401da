"""Signs the head of an audit log from time to time and at the end, and prunes rows up to what is signed.

A head is in the file first and in the table after that. So a crash leaves at most one head that is in the file only,
and the next look takes it over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import sqlalchemy
import structlog
from sqlalchemy import delete, insert, select

from cellmesh.service.audit.heads import Head, HeadFile, Signer, signer_in
from cellmesh.service.store import Reading, Store, to_micros
from cellmesh.service.store.audit import GENESIS

_log = structlog.get_logger()
KEPT_HEADS = 1000
"""How many heads the table has; the file has twice as many at most. The newest one vouches for all rows before it."""
_KEPT_ROWS = 1_000_000
# What was written since the newest head is not protected from being cut off.
_SECONDS = 60.0


class Seals:
    """The signed heads of one store's audit log. Open it with `Seals.opened`; one process of a service has it."""

    def __init__(self, store: Store[Any, Any], signer: Signer, file: HeadFile) -> None:
        self.store = store
        self.signer = signer
        self.file = file
        self.lock = asyncio.Lock()
        """Held while heads change, and while they are checked."""
        rows, heads = store.schema.audit
        self._rows, self._heads = rows, heads
        self._newest_row = select(rows.c.sequence, rows.c.hash).order_by(rows.c.sequence.desc()).limit(1)
        self._newest_head = select(heads).order_by(heads.c.number.desc()).limit(1)

    @classmethod
    @asynccontextmanager
    async def opened(cls, store: Store[Any, Any], directory: Path) -> AsyncIterator[Seals]:
        """Sign the log of a store with the key in `directory`, which is made where there is none; once more at the end.

        Raises AuditKeyUnusable, OSError.
        """
        signer, file = signer_in(directory, store.schema.service, now=store.now)
        seals = cls(store, signer, file)
        await seals.seal()
        yield seals
        await seals.seal()

    async def run(self) -> None:
        """Sign and prune from time to time, until cancelled."""
        while True:
            await asyncio.sleep(_SECONDS)
            try:
                await self.prune(keep=_KEPT_ROWS)
                await self.seal()
            except Exception as error:
                _log.error("audit.seal_failed", retry_s=_SECONDS, exc_info=error)

    async def seal(self) -> Head | None:
        """Sign the newest row, if it is not yet, and return its head. Raises StoreUnavailable, OSError."""
        async with self.lock:
            newest, (sequence, digest) = await self._look()
            if newest is None or newest.sequence >= sequence:
                return newest
            return await self._add(replace(newest, sequence=sequence, hash=digest))

    async def prune(self, *, keep: int) -> None:
        """Forget all but the newest rows, of those that are signed; keeps at least one. Raises as `seal`."""
        async with self.lock:
            newest, _ = await self._look()
            if newest is None or (first := newest.sequence - max(keep, 1) + 1) <= newest.first:
                return
            # The row before the oldest that is kept: its hash is where the chain begins from now on.
            before = select(self._rows.c.hash).where(self._rows.c.sequence == first - 1)
            async with self.store.reading() as reading:
                previous = await _first(reading, before)
            if previous is None:
                # It is gone already, and only `verify` may say what that means.
                return
            await self._add(replace(newest, first=first, first_previous=previous["hash"]))

    async def _look(self) -> tuple[Head | None, tuple[int, str]]:
        """Return the newest head and the newest row, with the head taken over that a crash left in the file only."""
        async with self.store.reading() as reading:
            row, stored = await _first(reading, self._newest_row), await _first(reading, self._newest_head)
        newest = None if stored is None else Head(**stored)
        left = await asyncio.to_thread(self.file.newest)
        number = 0 if newest is None else newest.number
        if left is not None and left.number == number + 1 and self.signer.is_own(left) and await self._is_true(left):
            await self._store(left)
            newest = left
        elif left is not None and (newest is None or left.number > newest.number):
            # Heads that only the file has: numbers go on after them, and `verify` says what is wrong.
            newest = left
        return newest, (0, GENESIS) if row is None else (row["sequence"], row["hash"])

    async def _is_true(self, head: Head) -> bool:
        if head.sequence == 0:
            return True
        query = select(self._rows.c.hash).where(self._rows.c.sequence == head.sequence)
        async with self.store.reading() as reading:
            row = await _first(reading, query)
        return row is not None and row["hash"] == head.hash

    async def _add(self, head: Head) -> Head:
        head = self.signer.sign(replace(head, number=head.number + 1, time=to_micros(self.store.now())))
        await asyncio.to_thread(self.file.append, head)
        # The log leaves the node with the rest of the journal, where nobody on it can take a head back.
        _log.info("audit.head", number=head.number, sequence=head.sequence, hash=head.hash, signature=head.signature)
        await self._store(head)
        if head.number % KEPT_HEADS == 0:
            await asyncio.to_thread(
                self.file.keep, [each for each in self.file.heads() if each is not None][-KEPT_HEADS:]
            )
        return head

    async def _store(self, head: Head) -> None:
        def step(connection: sqlalchemy.Connection) -> None:
            connection.execute(insert(self._heads), asdict(head))
            connection.execute(delete(self._rows).where(self._rows.c.sequence < head.first))
            connection.execute(delete(self._heads).where(self._heads.c.number <= head.number - KEPT_HEADS))

        async with self.store.transaction() as tx:
            await tx.step(step)


async def _first(reading: Reading, query: sqlalchemy.Select[Any]) -> dict[str, Any] | None:
    row = await reading.step(lambda connection: connection.execute(query).mappings().first())
    return None if row is None else dict(row)
