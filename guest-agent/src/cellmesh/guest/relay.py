"""Joining what comes in at one socket to another: bytes only, both ways, each way ended for itself.

One thread carries all connections of a relay. A thread for each way is no faster when one is busy, and hundreds that
speak at once spend most of their time waiting for each other's turn in the interpreter.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

_CHUNK = 64 << 10
_STACK = 256 << 10
_PAUSE = 0.05
_REDIAL_AFTER = 0.02
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT

Dial = Callable[[], socket.socket]
"""Returns a socket that is connected, or about to be; raises OSError."""
Patience = Callable[[], float]
"""Returns for how many seconds from now a far side that refuses is dialled again."""


def no_patience() -> float:
    """Take the first refusal for an answer."""
    return 0.0


class _End:
    """One socket of a connection, and what was read from it that `other` has not taken yet."""

    __slots__ = ("backlog", "done", "other", "socket", "watched")

    other: _End

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(0)
        self.socket = end
        self.backlog: memoryview | None = None
        self.done = False
        """Nothing more comes from it."""
        self.watched = 0

    @property
    def wanted(self) -> int:
        """What to watch it for. Never for nothing: an end that hung up would wake the thread for ever."""
        reading = _READ if self.backlog is None and not self.done else 0
        return reading | (_WRITE if self.other.backlog is not None else 0)


class _Caller:
    """A connection that has no far side yet, and until when one is looked for."""

    __slots__ = ("address", "again", "near", "until")

    def __init__(self, near: socket.socket, until: float) -> None:
        self.near = near
        self.until = until
        self.again = 0.0
        """When it is dialled for next."""
        self.address = 0
        """Index of the dial that is tried."""


class Relay:
    """Accepts on one socket and joins each connection to a freshly dialled one; dials have the thread to themselves.

    A far side with several addresses has a dial for each: the next one is tried at once when one refuses.
    What a connection says before its far side is there waits in the kernel. One whose far side refuses for longer than
    there is patience gets `refusal`, bytes that fit into an empty buffer, before it is closed.
    """

    def __init__(
        self,
        listener: socket.socket,
        *dials: Dial,
        limit: int = 128,
        peer_cid: int | None = None,
        patience: Patience = no_patience,
        refusal: bytes = b"",
    ) -> None:
        self._listener = listener
        self._dials = dials
        self._limit = limit
        self._peer_cid = peer_cid
        self._patience = patience
        self._refusal = refusal
        self._ends: dict[int, _End] = {}
        self._dialling: dict[int, tuple[_Caller, socket.socket]] = {}
        self._waiting: deque[_Caller] = deque()  # in the order of `again`
        self._chunk = memoryview(bytearray(_CHUNK))
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Accept and carry from now on, in a thread of its own."""
        self._listener.settimeout(0)
        self._epoll = select.epoll()
        self._wake = os.eventfd(0)
        self._epoll.register(self._wake, _READ)
        self._epoll.register(self._listener, _READ)
        self._thread = _start_thread(self._run)

    def close(self) -> None:
        """End every connection, and return when nobody listens any more."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._closed.set()
            # Shutting a vsock listener down wakes nobody.
            os.eventfd_write(self._wake, 1)
            thread.join()
            # Not by the thread: it may be awake already, and done before it is woken.
            os.close(self._wake)

    def _run(self) -> None:
        listener = self._listener.fileno()
        while not self._closed.is_set():
            for descriptor, _ in self._epoll.poll(self._next_dial()):
                if descriptor == listener:
                    self._accept()
                elif (end := self._ends.get(descriptor)) is not None:
                    self._carry(end)
                elif descriptor in self._dialling:
                    self._dialled(descriptor)
            self._dial_again()
        for end in self._ends.values():
            end.socket.close()
        for caller, far in self._dialling.values():
            caller.near.close()
            far.close()
        for caller in self._waiting:
            caller.near.close()
        self._listener.close()
        self._epoll.close()

    def _accept(self) -> None:
        try:
            near, address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            self._closed.wait(_PAUSE)  # One connection that failed before it was accepted says nothing of the next.
            return
        if not self._admits(address) or self._is_full():
            near.close()
            return
        self._call(_Caller(near, time.monotonic() + self._patience()))

    def _is_full(self) -> bool:
        return len(self._ends) // 2 + len(self._dialling) + len(self._waiting) >= self._limit

    def _admits(self, address: object) -> bool:
        return self._peer_cid is None or (isinstance(address, tuple) and address[0] == self._peer_cid)

    def _call(self, caller: _Caller) -> None:
        try:
            far = self._dials[caller.address]()
        except OSError as error:
            self._refused(caller, error.errno)
            return
        # What is not connected yet is writable when it is, or when it never will be.
        far.settimeout(0)
        self._dialling[far.fileno()] = caller, far
        self._epoll.register(far, _WRITE)

    def _dialled(self, descriptor: int) -> None:
        caller, far = self._dialling.pop(descriptor)
        self._epoll.unregister(far)
        if refusal := far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or met_itself(far):
            far.close()
            self._refused(caller, refusal)
        else:
            self._join(_End(caller.near), _End(far))

    def _refused(self, caller: _Caller, refusal: int | None) -> None:
        # Only the first address decides: a kernel without the family of another one refuses in its own way.
        may_wait = caller.address > 0 or refusal == errno.ECONNREFUSED
        if may_wait and caller.address + 1 < len(self._dials):
            caller.address += 1
            self._call(caller)
            return
        caller.address = 0
        caller.again = time.monotonic() + _REDIAL_AFTER
        if may_wait and caller.again < caller.until:
            self._waiting.append(caller)
            return
        if may_wait:
            caller.near.settimeout(0)
            with contextlib.suppress(OSError):  # it went away
                caller.near.send(self._refusal)
        caller.near.close()

    def _next_dial(self) -> float | None:
        """Return the seconds until somebody is to be dialled for, None if nobody waits."""
        return max(self._waiting[0].again - time.monotonic(), 0) if self._waiting else None

    def _dial_again(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0].again <= now:
            self._call(self._waiting.popleft())

    def _join(self, near: _End, far: _End) -> None:
        near.other, far.other = far, near
        for end in (near, far):
            self._ends[end.socket.fileno()] = end
        try:
            self._settle(near)
        except OSError:
            self._part(near)

    def _carry(self, end: _End) -> None:
        try:
            if end.other.backlog is not None:
                self._send(end.other, end.other.backlog)
            if end.backlog is None and not end.done:
                self._receive(end)
        except BlockingIOError:
            return
        except OSError:
            self._part(end)  # It can neither give nor take any more.

    def _receive(self, end: _End) -> None:
        count = end.socket.recv_into(self._chunk)
        if count:
            self._send(end, self._chunk[:count])
        else:
            end.done = True
            _shut(end.other, socket.SHUT_WR)
            self._settle(end)

    def _send(self, end: _End, data: memoryview) -> None:
        """Send on what came from `end`; what is not taken at once waits."""
        waited = end.backlog is not None
        try:
            taken = end.other.socket.send(data)
        except BlockingIOError:
            taken = 0
        except OSError:
            # The other takes no more, but it may have something left to give.
            end.done, end.backlog = True, None
            _shut(end, socket.SHUT_RD)
            self._settle(end)
            return
        left = taken < len(data)
        if left or waited:
            # The chunk is everybody's: what stays is copied, once.
            end.backlog = None if not left else data[taken:] if waited else memoryview(bytes(data[taken:]))
            if left != waited:
                self._settle(end)

    def _settle(self, end: _End) -> None:
        """Watch both ends for what is wanted of them now; part them once neither way has anything left."""
        if end.done and end.other.done and end.backlog is None and end.other.backlog is None:
            self._part(end)
        else:
            self._watch(end)
            self._watch(end.other)

    def _watch(self, end: _End) -> None:
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

    def _part(self, end: _End) -> None:
        for each in (end, end.other):
            del self._ends[each.socket.fileno()]
            each.socket.close()


def met_itself(connection: socket.socket) -> int:
    """Return the errno of a refusal if a TCP socket was given the very port it dialled, else 0.

    The kernel joins such a socket to itself if nobody listens there, and then nobody else can.
    """
    if connection.family not in {socket.AF_INET, socket.AF_INET6}:
        return 0
    with contextlib.suppress(OSError):  # it ended meanwhile
        if connection.getsockname() == connection.getpeername():
            return errno.ECONNREFUSED
    return 0


def _shut(end: _End, how: int) -> None:
    with contextlib.suppress(OSError):
        end.socket.shutdown(how)


def _start_thread(run: Callable[[], None]) -> threading.Thread:
    previous = threading.stack_size(_STACK)
    try:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
    finally:
        threading.stack_size(previous)
    return thread
