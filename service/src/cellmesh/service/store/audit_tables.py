"""The two tables of a service's audit log: its rows, and the signed heads of their chain.

Hashes and signatures are text in hexadecimal, so that one migration step serves both databases.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import BigInteger, Column, MetaData, String, Table, Text


class AuditTables(NamedTuple):
    """The tables of the audit log."""

    rows: Table
    heads: Table


def audit_tables(metadata: MetaData) -> AuditTables:
    """Return the tables of a service's audit log."""
    rows = Table(
        "audit",
        metadata,
        # Without a gap, unlike a journal's: a missing number is a missing row.
        Column("sequence", BigInteger, primary_key=True, autoincrement=False),
        Column("time", BigInteger, nullable=False),
        Column("caller_role", String, nullable=False),
        Column("caller_name", String, nullable=False),
        # Empty if the caller acted for itself.
        Column("user_id", String, nullable=False),
        Column("action", String, nullable=False),
        Column("resource", String, nullable=False),
        Column("decision", String, nullable=False),
        Column("trace_id", String, nullable=False),
        # A JSON object.
        Column("facts", Text, nullable=False),
        Column("hash", String, nullable=False),
    )
    heads = Table(
        "audit_heads",
        metadata,
        Column("number", BigInteger, primary_key=True, autoincrement=False),
        # The newest row that is signed, 0 if there was none.
        Column("sequence", BigInteger, nullable=False),
        Column("hash", String, nullable=False),
        # The oldest row that is kept, and the hash of the row before it.
        Column("first", BigInteger, nullable=False),
        Column("first_previous", String, nullable=False),
        Column("time", BigInteger, nullable=False),
        Column("signature", String, nullable=False),
    )
    return AuditTables(rows, heads)


AUDIT_STEP = (
    """CREATE TABLE audit (
           sequence BIGINT NOT NULL PRIMARY KEY,
           time BIGINT NOT NULL,
           caller_role VARCHAR NOT NULL,
           caller_name VARCHAR NOT NULL,
           user_id VARCHAR NOT NULL,
           action VARCHAR NOT NULL,
           resource VARCHAR NOT NULL,
           decision VARCHAR NOT NULL,
           trace_id VARCHAR NOT NULL,
           facts TEXT NOT NULL,
           hash VARCHAR NOT NULL)""",
    """CREATE TABLE audit_heads (
           number BIGINT NOT NULL PRIMARY KEY,
           sequence BIGINT NOT NULL,
           hash VARCHAR NOT NULL,
           first BIGINT NOT NULL,
           first_previous VARCHAR NOT NULL,
           time BIGINT NOT NULL,
           signature VARCHAR NOT NULL)""",
)
"""The migration step that brings an audit log to a database of before there was one, on both databases."""
