"""The state of a service, on SQLite or PostgreSQL: a change, its journal entry and its answer are one transaction."""

from cellmesh.service.store.audit import NO_FACTS, Action, Decision, Fact, Facts, Who
from cellmesh.service.store.audit_tables import AUDIT_STEP, AuditTables, audit_tables
from cellmesh.service.store.errors import StoreUnavailable
from cellmesh.service.store.schema import Schema, SchemaTooNew, answers_table, journal_table, state_table
from cellmesh.service.store.store import Store
from cellmesh.service.store.transaction import Reading, Statements, Transaction, from_micros, to_micros

__all__ = [
    "AUDIT_STEP",
    "NO_FACTS",
    "Action",
    "AuditTables",
    "Decision",
    "Fact",
    "Facts",
    "Reading",
    "Schema",
    "SchemaTooNew",
    "Statements",
    "Store",
    "StoreUnavailable",
    "Transaction",
    "Who",
    "answers_table",
    "audit_tables",
    "from_micros",
    "journal_table",
    "state_table",
    "to_micros",
]
