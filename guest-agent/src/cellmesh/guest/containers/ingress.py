"""The way from the host into one generation of a container: a vsock port that leads to one of its own ports.

It is that generation's alone: no other port leads there, and both it and all that came by it end with the generation.
"""

from __future__ import annotations

import errno
import functools
import socket
import time
from collections.abc import Callable

from cellmesh.guest import vsock
from cellmesh.guest.netns import LOOPBACK, NetworkNamespace
from cellmesh.guest.relay import Relay

CONNECTIONS = 256
"""How many the host may have open to one container; it allows itself half, as those it closes take a moment to end."""

# A server opens its port some time after its process began, and again when it reloads itself: to a caller that is a
# pause, not an error.
_PATIENCE_AT_START = 10.0
_PATIENCE = 1.0
NOT_LISTENING = b"HTTP/1.1 998 Not Listening\r\ncontent-length: 0\r\n\r\n"
"""Said to the edge, which has a page for this status, when that was not enough."""

Listen = Callable[[int], socket.socket]


class PortTaken(Exception):
    """The port cannot be listened on."""


class Ingress:
    """Joins connections to `port`, from the host only, to `http_port` in the network namespace of the container."""

    def __init__(self, port: int, http_port: int, listen: Listen) -> None:
        self._port = port
        self._http_port = http_port
        self._listen = listen
        self._relay: Relay | None = None
        self._network: NetworkNamespace | None = None
        self._patient_until = 0.0

    def open(self) -> None:
        """Listen, unless it does; raises PortTaken."""
        if self._relay is not None:
            return
        try:
            listener = self._listen(self._port)
        except OSError as error:
            raise PortTaken(f"port {self._port} of the guest's vsock: {error.strerror}") from error
        dials = [functools.partial(self._dial, family, address) for family, address in LOOPBACK]
        self._relay = Relay(
            listener,
            *dials,
            limit=CONNECTIONS,
            peer_cid=vsock.HOST_CID,
            patience=self._patience,
            refusal=NOT_LISTENING,
        )
        self._relay.start()

    def lead_to(self, network: NetworkNamespace | None) -> None:
        """Lead what comes from now on to a namespace, or nowhere."""
        self._network = network
        self._patient_until = 0.0 if network is None else time.monotonic() + _PATIENCE_AT_START

    def close(self) -> None:
        """Listen no more, and end every connection."""
        self._network = None
        if self._relay is not None:
            self._relay.close()

    def _patience(self) -> float:
        return max(_PATIENCE, self._patient_until - time.monotonic())

    def _dial(self, family: int, address: str) -> socket.socket:
        network = self._network
        if network is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the container does not run")
        return network.start_connect(self._http_port, family, address)
