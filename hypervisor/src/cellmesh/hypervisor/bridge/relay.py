"""Joining one accepted connection to one guest port: handshake, then bytes both ways in two blocking threads.

Threads, because they add a fifth of the delay asyncio streams add and sleep in recv when nothing moves.
"""

from __future__ import annotations

import socket
import threading

CONNECT_SECONDS = 2.0
"""cloud-hypervisor gives a guest as long to accept."""
_CHUNK = 64 << 10
_FIRST_CHUNK = 4 << 10  # enough for what stays open for long and says little: hundreds of WebSockets
_COUNTS = ("open", "connections", "refused", "failed", "to_guest_bytes", "from_guest_bytes")
_MAX_REPLY = 32  # "OK <port>\n" is 14 bytes at most


class Call:
    """One accepted connection, and the guest's end of it once there is one."""

    __slots__ = ("client", "cut", "guest", "route")

    def __init__(self, client: socket.socket, route: Route) -> None:
        self.client = client
        self.route = route
        self.guest: socket.socket | None = None
        self.cut = False


class Route:
    """One listener's way to a guest port, what it carried, and what it carries now."""

    def __init__(self, port: int, limit: int | None = None) -> None:
        self.port = port
        self.limit = limit
        """The most connections it may have open; None is as many as its bridge carries, the reserved ones included."""
        self.counts = dict.fromkeys(_COUNTS, 0)
        self.calls: set[Call] = set()


class Relays:
    """The connections of one bridge, bounded in number.

    Listeners with a limit leave the last `reserve` places to those without, so that a container whose visitors take
    every place does not cut the hypervisor off from the agent.
    """

    def __init__(self, vsock: str, *, limit: int, reserve: int) -> None:
        self._vsock = vsock
        self._limit = limit
        self._reserve = reserve
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(_COUNTS, 0)

    def counts(self, route: Route | None = None) -> dict[str, int]:
        """Return what was carried since the start, by one route or by all.

        `open` is now; `refused` were too many, `failed` were not accepted by the guest.
        """
        with self._lock:
            return dict(self._counts if route is None else route.counts)

    def accept(self, listener: socket.socket, route: Route) -> None:
        """Take one waiting connection and join it to a guest port; close it at once when too many are open."""
        try:
            client, _ = listener.accept()
        except OSError:
            return  # the caller hung up before its turn
        call = Call(client, route)
        if not self._enter(call):
            client.close()
            self._count(route, refused=1)
            return
        try:
            threading.Thread(target=self._carry, args=(call,), daemon=True).start()
        except RuntimeError:  # no thread to be had: as good as too many connections
            self._leave(call)
            client.close()
            self._count(route, refused=1, connections=-1)

    def cut(self, route: Route) -> int:
        """End every connection of a route at once, both ways, and return how many there were."""
        with self._lock:  # with it held none of them is closed meanwhile, and its number given to another
            for call in route.calls:
                call.cut = True
                _end(call.client, socket.SHUT_RDWR)
                if call.guest is not None:
                    _end(call.guest, socket.SHUT_RDWR)
            return len(route.calls)

    def _enter(self, call: Call) -> bool:
        route = call.route
        with self._lock:
            most = self._limit if route.limit is None else self._limit - self._reserve
            if self._counts["open"] >= most or (route.limit is not None and len(route.calls) >= route.limit):
                return False
            route.calls.add(call)
            self._add(route, connections=1, open=1)
        return True

    def _leave(self, call: Call) -> None:
        with self._lock:
            call.route.calls.discard(call)
            self._add(call.route, open=-1)

    def _carry(self, call: Call) -> None:
        with call.client:
            try:
                with connect(self._vsock, call.route.port) as guest:
                    self._join(call, guest)
            except (OSError, RuntimeError):
                self._count(call.route, failed=1)
            finally:
                self._leave(call)

    def _join(self, call: Call, guest: socket.socket) -> None:
        with self._lock:
            if call.cut:
                return
            call.guest = guest
        try:
            back = threading.Thread(target=self._back, args=(call, guest), daemon=True)
            back.start()
            self._count(call.route, to_guest_bytes=pump(call.client, guest))
            back.join()
        finally:
            with self._lock:
                call.guest = None

    def _back(self, call: Call, guest: socket.socket) -> None:
        self._count(call.route, from_guest_bytes=pump(guest, call.client))

    def _count(self, route: Route, **changes: int) -> None:
        with self._lock:
            self._add(route, **changes)

    def _add(self, route: Route, **changes: int) -> None:
        for counts in (self._counts, route.counts):
            for name, change in changes.items():
                counts[name] += change


def connect(vsock: str, port: int) -> socket.socket:
    """Open a connection to a guest port through cloud-hypervisor's hybrid vsock. Raises OSError if nobody accepts."""
    guest = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        guest.settimeout(CONNECT_SECONDS)
        guest.connect(vsock)
        guest.sendall(b"CONNECT %d\n" % port)
        reply = bytearray()
        # Byte by byte: the guest's first bytes may stand right behind the line and are not ours to read.
        while not reply.endswith(b"\n"):
            byte = guest.recv(1)
            if not byte or len(reply) >= _MAX_REPLY:
                raise ConnectionRefusedError(f"the guest does not accept on port {port}")
            reply += byte
        if not reply.startswith(b"OK "):
            raise ConnectionRefusedError(f"the guest does not accept on port {port}")
        guest.settimeout(None)
    except BaseException:
        guest.close()
        raise
    return guest


def pump(source: socket.socket, target: socket.socket) -> int:
    """Carry bytes until the source ends, then end the target's input; return how many were carried."""
    buffer = memoryview(bytearray(_FIRST_CHUNK))
    carried = 0
    try:
        while count := source.recv_into(buffer):
            target.sendall(buffer[:count])
            carried += count
            if count == len(buffer) < _CHUNK:
                buffer = memoryview(bytearray(_CHUNK))
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # One side is gone. What the other direction still holds is delivered by its own pump.
        _end(source, socket.SHUT_RD)
        _end(target, socket.SHUT_WR)
    return carried


def _end(side: socket.socket, how: int) -> None:
    try:
        side.shutdown(how)
    except OSError:
        return  # it has ended already
