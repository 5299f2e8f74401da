"""The entries of an audit log: what may stand in one, and how each is chained to the one before.

No secret gets in: an entry has the fields declared here and the facts that its action declares, each of a narrow type,
and nothing else. There is no field for a message, an argument or a request. Text of a provider key's shape is blotted
out even where its type would let it pass.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import sqlalchemy
from sqlalchemy import insert, select

from cellmesh.mesh import logs
from cellmesh.service.store.audit_tables import AuditTables

GENESIS = "0" * 64
"""What stands for the hash of the row before the first."""
CHANGED = "audit"
"""The key whose watchers are notified of new entries."""
Facts = Mapping[str, int | bool | str]
"""What else an action says of itself, by name."""
NO_FACTS: Facts = MappingProxyType({})
_DOMAIN = b"cellmesh.audit.row.v1"
_MAX_FACTS = 8
_MAX_NUMBER = 2**63 - 1
_FIELDS = (
    "sequence",
    "time",
    "caller_role",
    "caller_name",
    "user_id",
    "action",
    "resource",
    "decision",
    "trace_id",
    "facts",
)
_ACTION = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_FACT_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_RESOURCE = re.compile(r"[A-Za-z0-9._/:-]{0,300}")


class Decision(enum.StrEnum):
    """How it ended."""

    ALLOWED = "ALLOWED"
    """It was done, and is committed with this entry."""
    DENIED = "DENIED"
    """Whoever asked for it may not."""
    FAILED = "FAILED"
    """It was allowed and could not be done."""


class Fact(enum.Enum):
    """The types of facts: numbers, flags, and text of a pattern that leaves no room for prose."""

    NUMBER = "number"
    """A whole number from 0 to 2^63 - 1."""
    FLAG = "flag"
    """True or false."""
    UUID = "UUID"
    """A UUID in lower case."""
    NAME = "name"
    """A DNS label."""
    DIGEST = "digest"
    """The digest of an image."""
    PATH = "path"
    """The prefix of a route."""
    REASON = "reason"
    """A reason of a contract, or the name of an enum's value."""

    def accepts(self, value: object) -> bool:
        """Tell whether a value is of this type."""
        if self is Fact.FLAG:
            return isinstance(value, bool)
        if self is Fact.NUMBER:
            return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_NUMBER
        return isinstance(value, str) and re.fullmatch(_PATTERNS[self], value) is not None


_PATTERNS = {
    Fact.UUID: r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    Fact.NAME: r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
    Fact.DIGEST: r"sha256:[0-9a-f]{64}",
    Fact.PATH: r"/[a-z0-9_/-]{0,127}",
    Fact.REASON: r"[A-Z][A-Z0-9_]{0,63}",
}


@dataclass(frozen=True, slots=True)
class Action:
    """Something that is audited. A service declares its own as constants; ValueError for what cannot be one."""

    name: str
    """Such as `vm.create`."""
    facts: Mapping[str, Fact] = field(default_factory=dict)
    """The facts that an entry may have, at most eight."""

    def __post_init__(self) -> None:
        if not _ACTION.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no name of an action; it is like vm.create")
        if len(self.facts) > _MAX_FACTS or not all(map(_FACT_NAME.fullmatch, self.facts)):
            raise ValueError(f"{self.name} has more than {_MAX_FACTS} facts, or one that is not in snake_case")


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """Who does something."""

    role: str
    """A role of the contracts in lower case, or `self` for the service itself."""
    name: str
    """A SPIFFE id, or the name of the role."""
    user_id: str = ""
    """On behalf of which user, proven by a token or named by an operator; empty if for itself."""


def values_of(action: Action, who: Who, *, resource: str, decision: Decision, facts: Facts) -> dict[str, Any]:
    """Return the columns of an entry; ValueError, which never shows a value, for one that was not declared."""
    if not _RESOURCE.fullmatch(resource):
        raise ValueError(f"The resource of {action.name} is no id: letters, digits and ._/:- only, at most 300")
    for name, value in facts.items():
        if name not in action.facts:
            raise ValueError(f"{action.name} declares no fact {_shown(name)}")
        if not action.facts[name].accepts(value):
            raise ValueError(f"The fact {name} of {action.name} is no {action.facts[name].value}")
    shown = {name: _blotted(value) if isinstance(value, str) else value for name, value in facts.items()}
    return {
        "caller_role": who.role,
        "caller_name": who.name,
        "user_id": who.user_id,
        "action": action.name,
        "resource": _blotted(resource),
        "decision": decision.value,
        "facts": json.dumps(shown, sort_keys=True, separators=(",", ":")),
    }


def _shown(name: str) -> str:
    return name if _FACT_NAME.fullmatch(name) else "of this name"


def _blotted(text: str) -> str:
    return logs.without_secrets(text)


def row_hash(previous: str, row: Mapping[Any, Any]) -> str:
    """Return the hash of a row after the one with the hash `previous`.

    SHA-256 over a list of texts, each preceded by its length in 8 bytes (big-endian): the domain, the previous hash,
    then every column in the order of `_FIELDS`, numbers in decimal. Not protobuf: its deterministic form is promised
    for one build of one library only, and a log has to be checked years later, by anything.
    """
    parts = [_DOMAIN, previous.encode(), *(str(row[name]).encode("utf-8", "surrogateescape") for name in _FIELDS)]
    return hashlib.sha256(length_prefixed(parts)).hexdigest()


def length_prefixed(parts: list[bytes]) -> bytes:
    """Return parts in one, so that no two lists have the same bytes."""
    return b"".join(piece for part in parts for piece in (len(part).to_bytes(8, "big"), part))


class Chain:
    """Appends rows to the chain of one audit log."""

    def __init__(self, tables: AuditTables) -> None:
        rows = tables.rows.c
        self._newest = select(rows.sequence, rows.hash).order_by(rows.sequence.desc()).limit(1)
        self._insert = insert(tables.rows)

    def appending(self, values: Mapping[str, Any]) -> Callable[[sqlalchemy.Connection], None]:
        """Return the step that appends a row.

        The newest row is read where it is written, inside of the transaction: one kept in memory would be wrong as soon
        as a transaction of a group is undone, and is another process's to write as well.
        """

        def step(connection: sqlalchemy.Connection) -> None:
            newest = connection.execute(self._newest).first()
            sequence, previous = (0, GENESIS) if newest is None else newest
            row = {**values, "sequence": sequence + 1}
            connection.execute(self._insert, {**row, "hash": row_hash(previous, row)})

        return step
