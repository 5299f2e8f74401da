"""How much of what the edge allows; each limit can be another one by a setting."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta
from typing import ClassVar

_MOST_CONNECTIONS = 128


class _Bounds:
    """Makes each field more than nothing, and lets settings name no other."""

    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # what derives from this is a dataclass
            value = getattr(self, each.name)
            if value <= type(value)():
                raise ValueError(f"{each.name} must be more than nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(_Bounds):
    """How much one client, one user and all of them may ask for."""

    connections: int = 10_000
    """Connections of all clients."""
    streams_per_connection: int = 100
    """Requests at once on one HTTP/2 connection."""
    headers: int = 64
    """Headers of a request."""
    header_kib: int = 32
    """All headers of a request together."""
    body_bytes: int = 8 << 30
    """The body of a request, declared or not."""
    buffer_bytes: int = 32 << 10
    """How much a connection holds before its sender has to wait. More is faster and costs memory that strangers can
    take: a download of 1 GiB passed at 0.4 GB/s with 8 KiB, 1.7 with 32, 2.3 with 64 and 3.4 with 256."""
    requests_per_second: int = 5_000
    """Requests of one user, over time."""
    requests_burst: int = 10_000
    """Requests of one user at once, after a rest."""
    users_counted: int = 10_000
    """How many users are counted at a time; the one that was quiet longest is forgotten."""
    heap_bytes: int = 1 << 30
    """Envoy's memory; it gives up requests, then connections, before it has that much."""
    header_timeout: timedelta = timedelta(seconds=10)
    """How long the headers of a request may take."""
    request_timeout: timedelta = timedelta(hours=1)
    """How long a request, its body included, may take to arrive."""
    stream_idle_timeout: timedelta = timedelta(minutes=10)
    """How long a request, an event stream or a WebSocket may be silent."""
    connection_idle_timeout: timedelta = timedelta(minutes=2)
    """How long a connection is kept without a request."""
    stream_lifetime: timedelta = timedelta(hours=8)
    """How long a stream may live, so that its right to is asked for again."""
    handshake_timeout: timedelta = timedelta(seconds=5)
    """How long a TLS handshake may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteLimits(_Bounds):
    """How much one route of one user may have going on at once."""

    connections: int = _MOST_CONNECTIONS
    """Connections to its container, WebSockets among them; at most half of what the guest's relay takes, as two routes
    may lead to one container, and what was closed here takes a moment to end there."""
    pending_requests: int = 128
    """Requests that wait for one of these."""
    connect_timeout: timedelta = timedelta(seconds=2)
    """How long a connection may take."""
    idle_timeout: timedelta = timedelta(milliseconds=1500)
    """How long a connection is kept without a request: less than servers do (gunicorn 2 s, Node and uvicorn 5 s), as a
    request that meets the end of its connection cannot be sent again."""
    buffer_bytes: int = 32 * 1024
    """How much a connection holds before its sender has to wait."""
    answer_headers: int = 256
    """Headers of an answer; each cookie that is set is one."""

    def __post_init__(self) -> None:
        _Bounds.__post_init__(self)  # with slots the class is made anew, and super() would mean the one before
        if self.connections > _MOST_CONNECTIONS:
            raise ValueError(f"connections must be at most {_MOST_CONNECTIONS}: a guest takes twice as many")
