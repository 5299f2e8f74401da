"""Where the edge listens, and whether somebody does."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from cellmesh.cli.errors import CliError, ExitCode, UsageError

_EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104  # compared, not bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """An address of this machine."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """Return the address for a browser on this machine."""
        return f"https://{Listen(host='localhost', port=self.port) if self.host in _EVERYWHERE else self}/"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(text: str) -> Listen:
    """Return the address of `host:port`, an IPv6 host in brackets; raises UsageError."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or not port.isdecimal() or not 0 < int(port) < 1 << 16 or (":" in host and bare == host):
        raise UsageError(f"{text!r} is not a host and a port.", "Write it like 127.0.0.1:8443 or [::1]:8443.")
    return Listen(host=bare, port=int(port))


def check_free(listen: Listen) -> None:
    """Raise CliError if the address can't be had: two Envoys of one user would share it without a word."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As Envoy does: connections of an edge that has just ended are in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen.host, listen.port))
        except OSError as error:
            raise CliError(
                f"The edge can't listen on {listen}: {error.strerror}.",
                "Choose another address with --edge-listen, or start the node without its edge: --no-edge.",
                exit_code=ExitCode.CONFLICT,
                reason="EDGE_ADDRESS_TAKEN",
            ) from error


def answers(path: Path) -> bool:
    """Tell whether something accepts connections on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True
