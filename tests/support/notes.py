"""The store of the sample service, with what tests of stores ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sample import store
from sample.store import Note, entry

__all__ = ["Note", "Notes", "Reading", "Transaction", "entry"]


class Reading(store.Reading):
    """The notes as they were at one moment."""

    async def names(self) -> Sequence[str]:
        """Return the names of all notes, in order."""
        return [note.name for note in await self.notes()]


class Transaction(store.Transaction, Reading):
    """Changes of notes."""

    async def add_named(self, name: str) -> None:
        """Add a note that says nothing; IntegrityError, at the next statement or the commit, if there is one."""
        await self.add(Note(name, ""))

    async def add_audited(self, name: str) -> None:
        """Add a note that says nothing, with an entry in the audit log."""
        await self.add_named(name)
        await self.audit(store.ADD_NOTE, resource="notes", facts={"characters": 0})


class Notes(store.Notes):
    """The notes, and in memory which were committed together."""

    reading_type = Reading
    transaction_type = Transaction

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.commits: list[frozenset[str]] = []

    def committed(self, transaction: store.Transaction) -> None:
        """Note what was committed."""
        self.commits.append(frozenset(transaction.touched))
