"""Joining AF_VSOCK to unix sockets, because gRPC cannot speak AF_VSOCK; bytes only.

Two threads a connection: in Python they move bytes several times faster than asyncio streams do. A relay takes any
listener and any way to dial, so that the next users (a port inside a container's network namespace) need no new code.
"""

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

HOST_CID = 2
AGENT_PORT = 1024
HOST_PORT = 1025
_BUFFER = 64 << 10
_STACK = 256 << 10
_BACKLOG = 64
_PAUSE = 0.05

Dial = Callable[[], socket.socket]


class Relay:
    """Accepts on one socket and joins each connection to a freshly dialled one, in a thread that `dial` may keep."""

    def __init__(self, listener: socket.socket, dial: Dial, *, limit: int = 128, peer_cid: int | None = None) -> None:
        self._listener = listener
        self._listener.settimeout(0)
        self._dial = dial
        self._places = threading.BoundedSemaphore(limit)
        self._peer_cid = peer_cid
        self._closed = threading.Event()
        self._wake = -1
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Accept from now on, in a thread of its own."""
        self._wake = os.eventfd(0)
        self._thread = _start_thread(self._accept)

    def close(self) -> None:
        """Listen no more, and end every connection at once."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._lock:
            self._closed.set()
            for end in self._ends:
                _end(end)
        # Only this wakes the thread: shutting a vsock listener down, or closing it, lets accept sleep on.
        os.eventfd_write(self._wake, 1)
        thread.join()

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        with self._listener:
            while not self._closed.is_set():
                poll.poll()
                self._accept_one()
        os.close(self._wake)

    def _accept_one(self) -> None:
        try:
            near, address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            self._closed.wait(_PAUSE)  # One connection that failed before it was accepted says nothing of the next.
            return
        if not self._admits(address) or not self._places.acquire(blocking=False):
            near.close()
            return
        try:
            _start_thread(self._join, near)
        except RuntimeError:
            near.close()
            self._places.release()

    def _admits(self, address: object) -> bool:
        return self._peer_cid is None or (isinstance(address, tuple) and address[0] == self._peer_cid)

    def _join(self, near: socket.socket) -> None:
        try:
            with near, self._open(near), self._dial() as far, self._open(far):
                forth = _start_thread(_pump, near, far)
                _pump(far, near)
                forth.join()
        except (OSError, RuntimeError):
            return  # The far side is not there, or no thread is: the near side sees its connection close.
        finally:
            self._places.release()

    @contextlib.contextmanager
    def _open(self, end: socket.socket) -> Iterator[None]:
        with self._lock:
            if self._closed.is_set():
                raise ConnectionAbortedError
            self._ends.add(end)
        try:
            yield
        finally:
            with self._lock:
                self._ends.discard(end)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    buffer = bytearray(_BUFFER)
    view = memoryview(buffer)
    try:
        while count := source.recv_into(buffer):
            sink.sendall(view[:count])
    except OSError:
        # A broken half breaks the whole: both pumps must see it.
        for end in (source, sink):
            _end(end)
        return
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def _start_thread(run: Callable[..., None], *arguments: socket.socket) -> threading.Thread:
    previous = threading.stack_size(_STACK)
    try:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        thread.start()
    finally:
        threading.stack_size(previous)
    return thread


def listen_vsock(port: int) -> socket.socket:
    """Listen on a vsock port of this machine; raises OSError."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def dial_host(port: int = HOST_PORT) -> socket.socket:
    """Connect to a port of the host; raises OSError."""
    connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        connection.connect((HOST_CID, port))
    except OSError:
        connection.close()
        raise
    return connection


def listen_unix(path: str) -> socket.socket:
    """Listen on a unix socket only we may connect to, in place of a stale one; raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    Path(path).chmod(0o600)
    listener.listen(_BACKLOG)
    return listener


def dial_unix(path: str) -> socket.socket:
    """Connect to a unix socket; raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection
