"""What the edge is given: where its sockets lie, whom it serves, and how much of what it allows."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

_HTTPS_PORT = 443
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

Json = dict[str, object]
"""A piece of Envoy's configuration."""


class EdgeMisconfigured(ValueError):
    """The edge cannot be configured so; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Where requests come in."""

    host: str = ""
    port: int = 0
    path: Path | None = None
    """A unix socket in place of host and port."""
    mode: int = 0o600
    """Who may connect to that socket."""
    tls: bool = True

    def __post_init__(self) -> None:
        if self.path is None and not (self.host and 0 < self.port < 1 << 16):
            raise EdgeMisconfigured("A listener needs a host and a port, or the path of a unix socket.")
        if self.path is None and not self.tls and self.host not in _LOOPBACK:
            raise EdgeMisconfigured(f"{self.host} can be reached from elsewhere: it is served with TLS only.")


class _Bounds:
    """Makes each field more than nothing, and lets settings name no other."""

    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # what derives from this is a dataclass
            value = getattr(self, each.name)
            if value <= type(value)():
                raise EdgeMisconfigured(f"{each.name} must be more than nothing")


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


_MOST_CONNECTIONS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLimits(_Bounds):
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

    def __post_init__(self) -> None:
        _Bounds.__post_init__(self)
        if self.connections > _MOST_CONNECTIONS:
            raise EdgeMisconfigured(f"connections must be at most {_MOST_CONNECTIONS}: a guest takes twice as many")


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeOptions:
    """The edge of one node."""

    directory: Path
    """Where its sockets and files lie."""
    listeners: tuple[Listener, ...]
    domains: tuple[str, ...]
    """Host names it answers to; there is no name for any other."""
    limits: Limits = field(default_factory=Limits)
    authorizer: Path | None = None
    """Socket of the authorizer; absent is `authz.sock` in the directory."""
    authorizer_timeout: timedelta = timedelta(seconds=1)
    """How long the authorizer may take."""
    otlp: tuple[str, int] | None = None
    """Host and port where traces go by gRPC; without it they have ids but are not sent."""

    def __post_init__(self) -> None:
        if not self.listeners or not self.domains:
            raise EdgeMisconfigured("The edge needs a listener and a host name.")
        for domain in self.domains:
            if "*" in domain or ":" in domain or domain != domain.lower() or domain.endswith("."):
                raise EdgeMisconfigured(f"{domain!r} is not a host name in lower case, without a port or a wildcard.")

    @property
    def hypervisor_socket(self) -> Path:
        """Where the hypervisor tells of clusters."""
        return self.directory / "edge.sock"

    @property
    def authorizer_socket(self) -> Path:
        """Where the authorizer is asked."""
        return self.authorizer or self.directory / "authz.sock"

    @property
    def admin_socket(self) -> Path:
        """Envoy's own, for counters and for reopening its log."""
        return self.directory / "admin.sock"

    @property
    def probe_socket(self) -> Path:
        """Where each worker of Envoy can be pinged."""
        return self.directory / "probe.sock"

    @property
    def certificate_file(self) -> Path:
        """Certificate and key, as Envoy reads and re-reads them."""
        return self.directory / "certificate.json"

    @property
    def bootstrap_file(self) -> Path:
        """The configuration Envoy starts with."""
        return self.directory / "envoy.json"

    @property
    def access_log(self) -> Path:
        """One line of JSON for each request."""
        return self.directory / "access.log"

    @property
    def hosts(self) -> list[str]:
        """Host headers it answers to: each name alone, and with each port of its own."""
        ports = sorted({listener.port for listener in self.listeners} - {0, _HTTPS_PORT})
        return [host for name in self.domains for host in (name, *(f"{name}:{port}" for port in ports))]


def seconds(duration: timedelta) -> str:
    """Return a duration as Envoy's JSON has it."""
    return f"{duration.total_seconds():g}s"


def typed(type_name: str, **fields: object) -> Json:
    """Return an extension's configuration."""
    return {"@type": f"type.googleapis.com/{type_name}", **fields}
