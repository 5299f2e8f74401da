"""Checks an audit log: each row against the one before it, and the rows against the signed heads.

Rows are read in pages, so that memory does not grow with the log; of heads only so many are kept.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from sqlalchemy import Select, bindparam, select
from sqlalchemy.exc import DBAPIError

from cellmesh.service.audit.heads import Head, Signer, line_of, read
from cellmesh.service.audit.seals import KEPT_HEADS, Seals
from cellmesh.service.store import Reading, from_micros
from cellmesh.service.store.audit import GENESIS, row_hash

_PAGE = 500
Row = Mapping[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a check found."""

    rows: int
    """How many rows are in order, up to the first that is wrong."""
    first: int
    """The oldest row that is kept."""
    newest: Head | None
    """The newest signed head; what came after it is chained, and could be cut off unnoticed."""
    wrong_row: int = 0
    """The first row that is wrong; 0 if none is."""
    fault: str = ""
    """What is wrong first, in a sentence; empty if nothing is."""


class _WrongRow(Exception):
    """A row is wrong, or missing."""

    def __init__(self, sequence: int, fault: str) -> None:
        super().__init__(fault)
        self.sequence = sequence


async def verify(seals: Seals, *, after: int = 0) -> Verdict:
    """Check the log of a store; rows up to `after` are left out, and the hash of that one is taken as right.

    Raises StoreUnavailable, OSError.
    """
    async with seals.lock:
        heads, head_fault = await _heads(seals)
        newest = heads[-1] if heads else None
        verdict = Verdict(rows=0, first=1 if newest is None else newest.first, newest=newest, fault=head_fault)
        check = _Rows(seals, heads)
        try:
            await check.run(after)
        except _WrongRow as wrong:
            # A row that is wrong says more than a head that is.
            verdict = replace(verdict, wrong_row=wrong.sequence, fault=str(wrong))
        return replace(verdict, rows=check.rows)


async def _heads(seals: Seals) -> tuple[Sequence[Head], str]:
    """Return the heads that are signed, in order, and what is wrong with heads, if anything is."""
    table = seals.store.schema.audit.heads
    query = select(table).order_by(table.c.number.desc()).limit(KEPT_HEADS + 1)
    async with seals.store.reading() as reading:
        rows = await reading.step(lambda connection: connection.execute(query).mappings().all())
    # Columns of SQLite hold anything.
    stored = [read(line_of(Head(**row))) for row in rows]
    # One more than may be there: a file that grew beyond that is not read to its end.
    filed = await asyncio.to_thread(lambda: list(itertools.islice(seals.file.heads(), 2 * KEPT_HEADS + 1)))
    return check_heads(stored, filed, seals.signer)


def check_heads(
    stored: Sequence[Head | None], filed: Sequence[Head | None], signer: Signer
) -> tuple[Sequence[Head], str]:
    """Return the heads of the table and the file that are signed, in order, and what is wrong first, if anything is."""
    faults = [] if None not in stored else ["The table of signed heads has a row that is no head."]
    if None in filed:
        faults.append("The file of signed heads has a line that is no head.")
    table = [head for head in stored if head is not None]
    lines = [head for head in filed if head is not None]
    if any(before.number + 1 != head.number for before, head in itertools.pairwise(lines)):
        faults.append("The file of signed heads is not in order.")
    places = {head.number: head for head in table}, {head.number: head for head in lines}
    own = {head.number: head for head in (*lines, *table) if signer.is_own(head)}
    if not own:
        return [], "There is no signed head, and a log has one from its first moment on."
    oldest = max(1, max(own) - KEPT_HEADS + 1)
    numbers = {*range(oldest, max(own) + 1), *places[0], *(number for number in places[1] if number >= oldest)}
    for number in sorted(numbers):
        in_table, in_file = places[0].get(number), places[1].get(number)
        if in_table is None or in_file is None:
            place = "database" if in_table is None else "file beside the database"
            faults.append(f"Signed head {number} is missing in the {place}.")
        elif in_table != in_file:
            faults.append(f"Signed head {number} is another one in the database than in the file beside it.")
        elif number not in own:
            faults.append(f"Signed head {number} was not signed with the key of this service.")
    heads = [own[number] for number in sorted(own)]
    for before, head in itertools.pairwise(heads):
        if head.sequence < before.sequence or head.first < before.first:
            faults.append(
                f"Signed head {head.number} says less than the one before it: the log was replaced by an older one."
            )
    return heads, faults[0] if faults else ""


class _Rows:
    """A walk along the rows, and the heads that belong to them."""

    def __init__(self, seals: Seals, heads: Sequence[Head]) -> None:
        self.rows = 0
        self._store = seals.store
        self._heads = heads
        rows = seals.store.schema.audit.rows
        self._page = select(rows).where(rows.c.sequence > bindparam("after")).order_by(rows.c.sequence)
        self._all_before = select(rows).where(rows.c.sequence <= bindparam("after")).order_by(rows.c.sequence)

    async def run(self, after: int) -> None:
        """Raise _WrongRow for the first row that is wrong."""
        newest = self._heads[-1] if self._heads else None
        first, previous = (1, GENESIS) if newest is None else (newest.first, newest.first_previous)
        sequence = first - 1
        if after > sequence:
            sequence, previous = after, await self._hash_of(after)
        elif early := await self._read(self._all_before.limit(1), sequence):
            raise _WrongRow(
                early[0]["sequence"], f"Row {early[0]['sequence']} was put there: the log begins with {first}."
            )
        heads = sorted((head for head in self._heads if head.sequence >= sequence), key=lambda head: head.sequence)
        signed = iter(heads)
        head = _matched(signed, next(signed, None), sequence, previous)
        async for row in self._after(sequence):
            _check(row, sequence, previous, first)
            sequence, previous = row["sequence"], row["hash"]
            head = _matched(signed, head, sequence, previous)
            self.rows += 1
        if head is not None:
            raise _WrongRow(
                sequence + 1,
                f"The end of the log is cut off: {_signed(heads[-1])}, but the last row that is there is {sequence}.",
            )

    async def _hash_of(self, sequence: int) -> str:
        row = await self._read(self._page.limit(1), sequence - 1)
        if not row or row[0]["sequence"] != sequence:
            raise _WrongRow(sequence, f"Row {sequence} is missing.")
        return str(row[0]["hash"])

    async def _after(self, sequence: int) -> AsyncIterator[Row]:
        size = _PAGE
        while True:
            try:
                page = await self._read(self._page.limit(size), sequence)
            except DBAPIError as error:
                # A row that the driver cannot read: those before it come one by one.
                if size == 1:
                    raise _WrongRow(sequence + 1, f"Row {sequence + 1} cannot be read: it was changed.") from error
                size = 1
                continue
            for row in page:
                yield row
            if len(page) < size:
                return
            sequence = page[-1]["sequence"]

    async def _read(self, query: Select[Any], after: int) -> Sequence[Row]:
        async with self._store.reading() as reading:
            return await cast("Reading", reading).step(
                lambda connection: connection.execute(query, {"after": after}).mappings().all()
            )


def _check(row: Row, sequence: int, previous: str, first: int) -> None:
    """Raise _WrongRow unless a row is the one after `sequence`, and as it was written."""
    number = row["sequence"]
    if number != sequence + 1:
        raise _WrongRow(sequence + 1, f"Row {sequence + 1} is missing: row {number} comes in its place.")
    if row["hash"] != row_hash(previous, row):
        before = "the signed beginning of the log" if number == first else f"row {sequence}"
        raise _WrongRow(
            number,
            f"Row {number} was changed after it was written, or {before} was together with its hash: its own hash does "
            "not fit.",
        )


def _matched(signed: Iterable[Head], head: Head | None, sequence: int, digest: str) -> Head | None:
    """Check the heads that were signed of a row; return the next one after them."""
    heads = iter(signed)
    while head is not None and head.sequence <= sequence:
        if head.sequence == sequence and head.hash != digest:
            raise _WrongRow(
                sequence,
                f"{_signed(head).capitalize()}, but not as it is now: it, or rows before it, were written anew with "
                "hashes that fit.",
            )
        head = next(heads, None)
    return head


def _signed(head: Head) -> str:
    return f"row {head.sequence} was signed at {from_micros(head.time):%Y-%m-%d %H:%M:%S} UTC"
