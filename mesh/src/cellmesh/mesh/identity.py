"""Who calls: a role proven by a certificate or by the socket the bytes arrived on, never by what a caller says."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from cellmesh.api.options.v1 import method_pb2

_NAME = r"[a-z][a-z0-9-]{0,62}"
_TRUST_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class Role(enum.IntEnum):
    """What a caller is."""

    OPERATOR = method_pb2.ROLE_OPERATOR
    HYPERVISOR = method_pb2.ROLE_HYPERVISOR
    AUTH = method_pb2.ROLE_AUTH
    SECRETS = method_pb2.ROLE_SECRETS
    MEMORY = method_pb2.ROLE_MEMORY
    GUEST_AGENT = method_pb2.ROLE_GUEST_AGENT
    SERVICE = method_pb2.ROLE_SERVICE
    EDGE = method_pb2.ROLE_EDGE


_SERVICE_ROLES = {
    "hypervisor": Role.HYPERVISOR,
    "auth": Role.AUTH,
    "secrets": Role.SECRETS,
    "memory": Role.MEMORY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A container of a user's VM, in one of its lives."""

    vm_id: str
    """The VM."""
    container: str
    """Name of the container."""
    generation: int
    """Generation of the container."""
    epoch: int
    """Epoch of the VM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """The user that a call acts for, as a verified token or an operator says."""

    user_id: str
    """Which user; a UUID."""
    session_id: str = ""
    """The session of a browser that asked; empty if none did."""
    cell: Cell | None = None
    """The container that asked; None if none did."""
    scopes: frozenset[str] = frozenset()
    """What the token allows; empty if an operator named the user."""
    token_id: str = ""
    """The `jti` of the token, for audit; empty if an operator named the user."""
    named_by_operator: bool = False
    """True if no token says so, but an operator does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A caller that was identified."""

    role: Role
    """What it is."""
    name: str
    """Which one: a SPIFFE id, `operator`, `edge`, or the id of the VM its vsock belongs to."""
    user: User | None = None
    """The user it acts for in this call; None if it acts for itself."""


OPERATOR = Caller(role=Role.OPERATOR, name="operator")
EDGE = Caller(role=Role.EDGE, name="edge")

_current: ContextVar[Caller | None] = ContextVar("cellmesh_caller", default=None)


def caller() -> Caller | None:
    """Return who made the inbound call, or None outside of one."""
    return _current.get()


@contextmanager
def calling(who: Caller) -> Iterator[None]:
    """Let `caller()` answer `who` inside."""
    token = _current.set(who)
    try:
        yield
    finally:
        _current.reset(token)


def acting_user() -> User | None:
    """Return the user that the inbound call acts for, or None if there is none."""
    who = _current.get()
    return None if who is None else who.user


def spiffe_id(trust_domain: str, name: str) -> str:
    """Return the SPIFFE id of a service; raise ValueError for a name or trust domain that cannot stand in one."""
    if not _TRUST_DOMAIN.fullmatch(trust_domain):
        raise ValueError(f"{trust_domain!r} is no trust domain: use lower case letters, digits, '.' and '-'")
    if not re.fullmatch(_NAME, name):
        raise ValueError(f"{name!r} is no service name: use lower case letters, digits and '-'")
    return f"spiffe://{trust_domain}/service/{name}"


def caller_of(uri: str, trust_domain: str) -> Caller | None:
    """Return the caller a SPIFFE id of this trust domain names, matched exactly, or None."""
    match = re.fullmatch(rf"spiffe://{re.escape(trust_domain)}/service/({_NAME})", uri)
    if match is None:
        return None
    return Caller(role=_SERVICE_ROLES.get(match[1], Role.SERVICE), name=uri)
