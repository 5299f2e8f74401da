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
class Caller:
    """A caller that was identified."""

    role: Role
    """What it is."""
    name: str
    """Which one: a SPIFFE id, `operator`, `edge`, or the id of the VM its vsock belongs to."""


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
