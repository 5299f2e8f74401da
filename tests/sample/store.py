"""Notes, and a journal of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Index, MetaData, String, Table, insert, select

from cellmesh.mesh.errors import Code, MeshError
from cellmesh.service import store
from cellmesh.service.store import Action, Fact, Schema, answers_table, audit_tables, journal_table, state_table

METADATA = MetaData()
NOTES = Table("notes", METADATA, Column("name", String, primary_key=True), Column("body", String, nullable=False))
JOURNAL = journal_table(
    "journal",
    METADATA,
    Column("name", String, nullable=False),
    Column("body", String, nullable=False),
    Index("journal_of_note", "name", "sequence"),
)
ADD_NOTE = Action("note.add", {"characters": Fact.NUMBER})


class NoteExists(MeshError):
    """There is a note of this name."""

    code = Code.ALREADY_EXISTS
    reason = "NOTE_EXISTS"
    domain = "cellmesh.sample"


@dataclass(frozen=True, slots=True)
class Note:
    """A note, and its place in the journal if it was read from there."""

    name: str
    body: str
    sequence: int = 0


def entry(row: Any) -> Note:
    """Return the note of a row of the journal."""
    return Note(row["name"], row["body"], row["sequence"])


class Reading(store.Reading):
    """The notes as they were at one moment."""

    async def note(self, name: str) -> Note | None:
        """Return a note, or None."""
        found = await self._connection.execute(select(NOTES).where(NOTES.c.name == name))
        return Note(**found[0]) if found else None

    async def notes(self, *, after: str = "", limit: int = 1_000_000) -> Sequence[Note]:
        """Return notes after a name, by name."""
        query = select(NOTES).where(NOTES.c.name > after).order_by(NOTES.c.name).limit(limit)
        return [Note(**row) for row in await self._connection.execute(query)]


class Transaction(store.Transaction, Reading):
    """Changes of notes."""

    async def add(self, note: Note) -> None:
        """Add a note that is not there."""
        values = {"name": note.name, "body": note.body}
        self._connection.write(insert(NOTES), values)
        await self.append(values, key=note.name)


class Notes(store.Store[Reading, Transaction]):
    """The notes."""

    schema = Schema(
        service="notes",
        metadata=METADATA,
        journal=JOURNAL,
        state=state_table(METADATA),
        answers=answers_table(METADATA),
        audit=audit_tables(METADATA),
    )
    reading_type = Reading
    transaction_type = Transaction
