"""Joining accepted connections to guest ports: a handshake, then bytes both ways, each way ended for itself.

One thread carries them all. A thread for each way is no faster when one is busy, and hundreds that speak at once spend
most of their time waiting for each other's turn in the interpreter.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque

from cellmesh.hypervisor.bridge.call import Call, End, Route, shut
from cellmesh.hypervisor.bridge.pipe import Pipe, TargetGone

CONNECT_SECONDS = 2.0
"""cloud-hypervisor gives a guest as long to accept."""
_RETRY_SECONDS = 0.005
_CHUNK = 64 << 10
_READ = select.EPOLLIN
_MAX_REPLY = 32  # "OK <port>\n" is 14 bytes at most


class Relays:
    """The connections of one bridge, bounded in number.

    Listeners with a limit leave the last `reserve` places to those without, so that a container whose visitors take
    every place does not cut the hypervisor off from the agent.
    """

    def __init__(self, vsock: str, *, limit: int, reserve: int) -> None:
        self._vsock = vsock
        self._limit = limit
        self._reserve = reserve
        self._total = Route(port=0)
        self._listeners: dict[int, tuple[socket.socket, Route]] = {}
        self._ends: dict[int, End] = {}
        self._greeting: dict[Call, float] = {}
        """Calls the guest has not accepted yet, oldest first, and when it is too late to."""
        self._turned_away: deque[Call] = deque()
        """Those of them that found the VMM's queue full."""
        self._chunk = memoryview(bytearray(_CHUNK))
        self._pipe = Pipe()
        self._epoll = select.epoll()
        # Held whenever anything but poll is done.
        self._lock = threading.Lock()

        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Accept and carry from now on, in a thread of its own."""
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether connections are carried: a bridge without that is better ended, as it is then started anew."""
        return self._thread.is_alive()

    def listen(self, listener: socket.socket, route: Route) -> None:
        """Join what comes to a listener to its route."""
        with self._lock:
            listener.settimeout(0)
            self._listeners[listener.fileno()] = listener, route
            self._epoll.register(listener, _READ)

    def leave(self, listener: socket.socket) -> None:
        """Accept no more from a listener and close it; connections that are open go on."""
        with self._lock:
            del self._listeners[listener.fileno()]
            self._epoll.unregister(listener)
            listener.close()

    def cut(self, route: Route) -> int:
        """End every connection of a route at once, both ways, and return how many there were."""
        with self._lock:
            calls = list(route.calls)
            for call in calls:
                self._part(call)
            return len(calls)

    def counts(self, route: Route | None = None) -> dict[str, int]:
        """Return what was carried since the start, by one route or by all.

        `open` is now; `refused` were too many, `failed` were not accepted by the guest.
        """
        with self._lock:
            return dict((route or self._total).counts)

    def _run(self) -> None:
        while True:
            with self._lock:
                patience = self._patience()
            ready = self._epoll.poll(patience)
            with self._lock:
                for descriptor, _ in ready:
                    if (end := self._ends.get(descriptor)) is not None:
                        self._serve(end)
                    elif (found := self._listeners.get(descriptor)) is not None:
                        self._accept(*found)
                if self._greeting:
                    self._attend()

    def _patience(self) -> float | None:
        if self._turned_away:
            return _RETRY_SECONDS
        oldest = next(iter(self._greeting.values()), None)
        return None if oldest is None else max(0.0, oldest - time.monotonic())

    def _accept(self, listener: socket.socket, route: Route) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # the caller hung up before its turn
        most = self._limit if route.limit is None else self._limit - self._reserve
        if self._total.counts["open"] >= most or (route.limit is not None and len(route.calls) >= route.limit):
            client.close()
            self._count(route, "refused")
            return
        try:
            call = Call(client, route)
        except OSError:  # no descriptor to be had: as good as too many connections
            client.close()
            self._count(route, "refused")
            return
        route.calls.add(call)
        self._count(route, "connections")
        self._count(route, "open")
        self._greeting[call] = time.monotonic() + CONNECT_SECONDS
        self._dial(call)

    def _dial(self, call: Call) -> None:
        try:
            call.guest.socket.connect(self._vsock)
            call.guest.socket.send(b"CONNECT %d\n" % call.route.port)
            self._ends[call.guest.socket.fileno()] = call.guest
            self._watch(call.guest)
        except BlockingIOError:
            self._turned_away.append(call)
        except OSError:
            self._part(call)

    def _attend(self) -> None:
        """Dial again for whom the VMM's queue was full, and give up on the guest where it takes too long."""
        for _ in range(len(self._turned_away)):
            call = self._turned_away.popleft()
            if call in self._greeting:
                self._dial(call)
        now = time.monotonic()
        for call in [call for call, deadline in self._greeting.items() if deadline <= now]:
            self._part(call)

    def _greet(self, call: Call) -> None:
        """Read the guest's answer to CONNECT, and not a byte more: what stands behind the line is the client's."""
        seen = call.guest.socket.recv(_MAX_REPLY, socket.MSG_PEEK)
        call.reply += call.guest.socket.recv(seen.find(b"\n") + 1 or len(seen))
        if call.reply.endswith(b"\n") and call.reply.startswith(b"OK "):
            del self._greeting[call]
            self._ends[call.client.socket.fileno()] = call.client
            self._watch(call.client)
        elif not seen or call.reply.endswith(b"\n") or len(call.reply) >= _MAX_REPLY:
            self._part(call)

    def _serve(self, end: End) -> None:
        try:
            if end.call in self._greeting:
                self._greet(end.call)
                return
            if end.other.backlog:
                self._send(end.other, end.other.backlog)
            if not end.backlog and not end.done:
                self._receive(end)
        except BlockingIOError:
            return
        except OSError:
            self._part(end.call)  # this end can neither give nor take any more

    def _receive(self, end: End) -> None:
        if end.busy:
            count = self._move(end)
        else:
            count = end.socket.recv_into(self._chunk)
            if count:
                self._send(end, self._chunk[:count])
        end.busy = count >= _CHUNK
        if not count:
            end.done = True
            shut(end.other, socket.SHUT_WR)
            self._settle(end)

    def _move(self, end: End) -> int:
        """Send on much at once, without a copy; return how much has come."""
        try:
            count, left = self._pipe.move(end.socket, end.other.socket)
        except TargetGone:
            self._hush(end)
            return _CHUNK
        self._count(end.call.route, end.counter, count - len(left))
        if left:
            end.backlog = memoryview(left)
            self._settle(end)
        return count

    def _send(self, end: End, data: memoryview) -> None:
        """Send on what came from an end; what is not taken at once waits."""
        waited = bool(end.backlog)
        try:
            taken = end.other.socket.send(data)
        except BlockingIOError:
            taken = 0
        except OSError:
            self._hush(end)
            return
        self._count(end.call.route, end.counter, taken)
        left = taken < len(data)
        if left:
            # The chunk is everybody's: what stays is copied, once.
            end.backlog = data[taken:] if waited else memoryview(bytes(data[taken:]))
        else:
            end.backlog = None
        if left != waited:
            self._settle(end)

    def _hush(self, end: End) -> None:
        """Hear no more from an end: the other takes no more, but it may have something left to give."""
        end.done, end.backlog = True, None
        shut(end, socket.SHUT_RD)
        self._settle(end)

    def _settle(self, end: End) -> None:
        """Watch both ends for what is wanted of them now; part them once neither way has anything left."""
        if end.done and end.other.done and not end.backlog and not end.other.backlog:
            self._part(end.call)
        else:
            self._watch(end)
            self._watch(end.other)

    def _watch(self, end: End) -> None:
        wanted = end.wanted
        if wanted == end.watched:
            return
        if not wanted:
            self._epoll.unregister(end.socket)
        elif not end.watched:
            self._epoll.register(end.socket, wanted)
        else:
            self._epoll.modify(end.socket, wanted)
        end.watched = wanted

    def _part(self, call: Call) -> None:
        for end in (call.client, call.guest):
            self._ends.pop(end.socket.fileno(), None)
            end.done = True
            end.socket.close()
        if self._greeting.pop(call, None) is not None:
            self._count(call.route, "failed")
        call.route.calls.discard(call)
        self._count(call.route, "open", -1)

    def _count(self, route: Route, name: str, change: int = 1) -> None:
        self._total.counts[name] += change
        route.counts[name] += change
