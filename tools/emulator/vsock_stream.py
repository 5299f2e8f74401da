"""One connection between a host socket and a port of the guest, with the credit both sides keep."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from enum import Enum, auto

from emulator.vsock_packet import BUFFER_BYTES

_WRAP = 0xFFFFFFFF
_CREDIT_THRESHOLD = BUFFER_BYTES // 2
_TIMEOUT_SECONDS = 2.0


class HostSide(Enum):
    """How far the host's socket is closed."""

    OPEN = auto()
    ENDED = auto()
    GONE = auto()


class Stream:
    """State of one connection; the device moves the bytes."""

    def __init__(self, host: socket.socket, *, host_port: int, guest_port: int, established: bool) -> None:
        host.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        self.host = host
        self.host_port = host_port
        self.guest_port = guest_port
        self.established = established
        self.host_side = HostSide.OPEN
        self.guest_sends = True
        self.guest_receives = True
        self.backlog = bytearray()
        self.awaits_buffers = False
        self.watched: int | None = None
        self.deadline: float | None = None if established else time.monotonic() + _TIMEOUT_SECONDS
        self.forwarded = 0
        self._forwarded_told = 0
        self._sent = 0
        self._guest_buffer = 0
        self._guest_forwarded = 0

    @property
    def key(self) -> tuple[int, int]:
        """The pair of ports that names this connection."""
        return self.host_port, self.guest_port

    @property
    def credit(self) -> int:
        """Bytes the guest has room for."""
        in_flight = (self._sent - self._guest_forwarded) & _WRAP
        return max(0, self._guest_buffer - in_flight)

    @property
    def owes_credit(self) -> bool:
        """Whether the guest believes to have much less room than it has."""
        return (self.forwarded - self._forwarded_told) & _WRAP >= _CREDIT_THRESHOLD

    @property
    def finished(self) -> bool:
        """Whether nothing can flow any more in either direction."""
        return not self.guest_sends and (not self.guest_receives or self.host_side is not HostSide.OPEN)

    def take_credit(self, *, buffer_bytes: int, forwarded: int) -> None:
        """Believe what the guest says about its room."""
        self._guest_buffer, self._guest_forwarded = buffer_bytes, forwarded

    def tell_credit(self) -> int:
        """Return the count of forwarded bytes for a packet that is being sent."""
        self._forwarded_told = self.forwarded
        return self.forwarded

    def count_sent(self, size: int) -> None:
        """Count bytes given to the guest."""
        self._sent = (self._sent + size) & _WRAP

    def count_forwarded(self, size: int) -> None:
        """Count bytes of the guest that the host's socket took."""
        self.forwarded = (self.forwarded + size) & _WRAP

    def end_writing(self) -> None:
        """Let the host read the end; it may have gone already."""
        with contextlib.suppress(OSError):
            self.host.shutdown(socket.SHUT_WR)

    def start_timer(self) -> None:
        """Give what is under way two seconds."""
        self.deadline = time.monotonic() + _TIMEOUT_SECONDS

    def wanted_events(self) -> int | None:
        """Return the epoll events of interest, None for none at all, not even a hang-up."""
        if self.host_side is HostSide.GONE or not self.established:
            return None
        events = select.EPOLLOUT if self.backlog else 0
        if self.host_side is HostSide.ENDED:
            return events
        if self.guest_receives and self.credit and not self.awaits_buffers:
            events |= select.EPOLLIN
        return events or None
