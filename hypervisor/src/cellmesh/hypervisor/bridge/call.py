"""One connection through a bridge: its two ends, and the route it takes."""

from __future__ import annotations

import select
import socket

_COUNTS = ("open", "connections", "refused", "failed", "to_guest_bytes", "from_guest_bytes")


class Route:
    """One listener's way to a guest port, what it carried, and what it carries now."""

    def __init__(self, port: int, limit: int | None = None) -> None:
        self.port = port
        self.limit = limit
        """The most connections it may have open; None is as many as its bridge carries, the reserved ones included."""
        self.counts = dict.fromkeys(_COUNTS, 0)
        self.calls: set[Call] = set()


class Call:
    """One accepted connection, and the guest's end of it."""

    __slots__ = ("client", "guest", "reply", "route")

    def __init__(self, client: socket.socket, route: Route) -> None:
        self.route = route
        self.client = End(client, self, counter="to_guest_bytes")
        self.guest = End(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), self, counter="from_guest_bytes")
        self.client.other, self.guest.other = self.guest, self.client
        self.reply = b""
        """What the guest has said to CONNECT."""


class End:
    """One socket of a call, and what was read from it that `other` has not taken yet."""

    __slots__ = ("backlog", "busy", "call", "counter", "done", "other", "socket", "watched")

    other: End

    def __init__(self, end: socket.socket, call: Call, *, counter: str) -> None:
        end.settimeout(0)
        self.socket = end
        self.call = call
        self.counter = counter
        self.backlog: memoryview | None = None
        self.done = False
        """Nothing more comes from it."""
        self.busy = False
        """What came last filled a chunk."""
        self.watched = 0

    @property
    def wanted(self) -> int:
        """What to watch it for. Never for nothing: an end that hung up would wake the thread for ever."""
        reading = select.EPOLLIN if not self.backlog and not self.done else 0
        return reading | (select.EPOLLOUT if self.other.backlog else 0)


def shut(end: End, how: int) -> None:
    """End one way of a socket, unless it has ended already."""
    try:
        end.socket.shutdown(how)
    except OSError:
        return
