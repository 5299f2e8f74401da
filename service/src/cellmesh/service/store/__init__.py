"""The state of a service, on SQLite or PostgreSQL: a change, its journal entry and its answer are one transaction."""

from cellmesh.service.store.errors import StoreUnavailable
from cellmesh.service.store.schema import Schema, SchemaTooNew, answers_table, journal_table, state_table
from cellmesh.service.store.store import Store
from cellmesh.service.store.transaction import Reading, Statements, Transaction, from_micros, to_micros

__all__ = [
    "Reading",
    "Schema",
    "SchemaTooNew",
    "Statements",
    "Store",
    "StoreUnavailable",
    "Transaction",
    "answers_table",
    "from_micros",
    "journal_table",
    "state_table",
    "to_micros",
]
