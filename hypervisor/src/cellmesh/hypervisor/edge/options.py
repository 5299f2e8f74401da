"""What the edge is given: where its sockets lie, whom it serves, and how much of what it allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from cellmesh.hypervisor.limits import Limits
from cellmesh.service.errors import Unusable

_HTTPS_PORT = 443
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

Json = dict[str, object]
"""A piece of Envoy's configuration."""


class EdgeMisconfigured(Unusable):
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
