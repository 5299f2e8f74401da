"""The tables a service has besides its own, and how an older database becomes the newest.

Times are microseconds since 1970.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    insert,
    inspect,
    select,
    text,
)

from cellmesh.service.errors import Unusable
from cellmesh.service.store.audit_tables import AuditTables

_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one service.

    A new database is made from `metadata`. `migrations` are the steps that made it what it is: step n brings a database
    of version n + 1 to version n + 2. Steps are only ever added, and written in SQL: the tables of `metadata` go on
    changing, what a step did never does.
    """

    service: str
    """The name of the service, as error messages have it."""
    metadata: MetaData
    """Its tables."""
    journal: Table
    """Its journal, made by `journal_table`."""
    state: Table
    """One row: what signs its tokens, and how far its journal is pruned. Made by `state_table`."""
    answers: Table
    """What mutations were answered. Made by `answers_table`."""
    audit: AuditTables
    """Who did what, and the signed heads of that chain. Made by `audit_tables`, in an old database by `AUDIT_STEP`."""
    migrations: Sequence[Sequence[str]] = ()

    @property
    def version(self) -> int:
        """Return the version that a database has once it is up to date."""
        return len(self.migrations) + 1


def state_table(metadata: MetaData) -> Table:
    """Return the table of the one row that the kit keeps for a service."""
    return Table(
        "service_state",
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        # Signs page and resume tokens, so that they outlive a restart.
        Column("token_key", LargeBinary, nullable=False),
        # Entries of the journal up to here are no longer kept.
        Column("pruned_sequence", BigInteger, nullable=False),
    )


def answers_table(metadata: MetaData) -> Table:
    """Return the table of what mutations were answered, by method and `request_id`."""
    return Table(
        "answers",
        metadata,
        Column("method", String, primary_key=True),
        Column("request_id", String, primary_key=True),
        Column("fingerprint", LargeBinary, nullable=False),
        # A google.rpc.Status if `refused`, else the message of the method.
        Column("refused", Boolean, nullable=False),
        Column("answer", LargeBinary, nullable=False),
        Column("time", BigInteger, nullable=False),
        Index("answers_by_time", "time"),
    )


def journal_table(name: str, metadata: MetaData, *columns: Column[object] | Index) -> Table:
    """Return the table of a journal, whose entries have these columns too."""
    return Table(
        name,
        metadata,
        # Never given twice, even after the newest rows were pruned, and given in the order of commits.
        Column("sequence", _SEQUENCE, primary_key=True),
        Column("time", BigInteger, nullable=False),
        Column("trace_id", String, nullable=False),
        *columns,
        sqlite_autoincrement=True,
    )


class SchemaTooNew(Unusable):
    """The database was written by a later version of the service."""

    def __init__(self, schema: Schema, found: int) -> None:
        super().__init__(
            f"The database has schema version {found}, this {schema.service} knows up to {schema.version}; "
            "install the version that wrote it, or a later one."
        )


def prepare(connection: Connection, schema: Schema) -> None:
    """Make the tables or bring them up to date; SchemaTooNew if a later version wrote them."""
    found = _version(connection)
    if found > schema.version:
        raise SchemaTooNew(schema, found)
    if found == 0:
        schema.metadata.create_all(connection)
    else:
        for statement in itertools.chain.from_iterable(schema.migrations[found - 1 :]):
            connection.exec_driver_sql(statement)
    _set_version(connection, schema.version)
    if connection.execute(select(schema.state.c.id)).first() is None:
        connection.execute(insert(schema.state).values(id=1, token_key=secrets.token_bytes(32), pruned_sequence=0))


def _version(connection: Connection) -> int:
    if connection.dialect.name == "sqlite":
        return int(connection.execute(text("PRAGMA user_version")).scalar_one())
    if not inspect(connection).has_table("schema_version"):
        connection.execute(text("CREATE TABLE schema_version (version INTEGER NOT NULL)"))
        connection.execute(text("INSERT INTO schema_version VALUES (0)"))
    return int(connection.execute(text("SELECT version FROM schema_version")).scalar_one())


def _set_version(connection: Connection, version: int) -> None:
    if connection.dialect.name == "sqlite":
        # A PRAGMA takes no parameters.
        connection.execute(text(f"PRAGMA user_version = {version}"))
    else:
        connection.execute(text("UPDATE schema_version SET version = :version"), {"version": version})
