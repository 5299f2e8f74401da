"""The door before a gRPC server that a stranger may knock at: few connections, checked frames, bounded time and work.

gRPC admits as many connections as there are descriptors, and keeps what it is sent of frames it does not know. So the
stranger's socket is served here, and what passes goes on to a socket of the gRPC server that the stranger cannot reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cellmesh.mesh import unix_socket
from cellmesh.mesh.frames import BadFrames, FrameCheck

_CHUNK_BYTES = 16 * 1024
_BACKLOG = 8
_PAUSE_SECONDS = 1.0
# What connections cost, in the units of FrameCheck.
_ADMISSION_COST = 64
_REFUSAL_COST = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one stranger may take."""

    connections: int = 4
    """At once; each of more is closed."""
    handshake: float = 10.0
    """Seconds until a connection's first call."""
    silence: float = 30.0
    """Seconds between two complete frames, and how long the stranger may read nothing of what waits for it."""
    work: float = 8192
    """Units of FrameCheck at once, of all connections together; nothing is read while they are used up."""
    work_per_second: float = 256


class Acceptor:
    """Listens at `path` and joins each connection it admits to the server at `inner`.

    `note` gets the reason why a connection ended; it must bound what it does with that.
    """

    def __init__(self, path: Path, *, inner: Path, bounds: Bounds, note: Callable[[str], None]) -> None:
        self.inner = str(inner)
        self.bounds = bounds
        self._path = path
        self._note = note
        self._units = bounds.work
        self._counted = time.monotonic()
        self._joints: set[_Joint] = set()
        self._pause: asyncio.TimerHandle | None = None
        with contextlib.ExitStack() as made:
            made.enter_context(unix_socket.claim(path))
            self._socket = made.enter_context(socket.socket(socket.AF_UNIX))
            self._socket.settimeout(0)
            with unix_socket.closed():
                self._socket.bind(str(path))
            self._claim = made.pop_all()

    def start(self) -> None:
        """Admit connections."""
        self._socket.listen(_BACKLOG)
        asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def stop(self) -> None:
        """Admit nobody any longer and end every connection; again does nothing."""
        if self._socket.fileno() < 0:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        if self._pause is not None:
            self._pause.cancel()
        # The directory is the stranger's: whatever has this name there now may go, and need not.
        with contextlib.suppress(OSError):
            self._path.unlink()
        self._claim.close()
        for joint in tuple(self._joints):
            joint.end()

    def spend(self, units: int) -> None:
        """Take units from what the stranger may use."""
        now = time.monotonic()
        earned = (now - self._counted) * self.bounds.work_per_second
        self._units = min(self._units + earned, self.bounds.work) - units
        self._counted = now

    def debt(self) -> float:
        """Return for how many seconds nothing is to be done for the stranger."""
        self.spend(0)
        return max(-self._units, 0) / self.bounds.work_per_second

    def ended(self, joint: _Joint, reason: str) -> None:
        """Forget a connection that is over; `reason` is empty if its client or server closed it."""
        self._joints.discard(joint)
        if reason:
            self._note(reason)

    def _accept(self) -> None:
        """Take one connection. Those that have to wait are the stranger's own."""
        try:
            stranger, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            self._note(f"no connection could be taken: {errno.errorcode.get(error.errno or 0, 'unknown')}")
            self._rest(_PAUSE_SECONDS)
            return
        if len(self._joints) < self.bounds.connections:
            self.spend(_ADMISSION_COST)
            self._joints.add(_Joint(stranger, self))
        else:
            stranger.close()
            self.spend(_REFUSAL_COST)
            self._note("more connections than it may have")
        if debt := self.debt():
            self._rest(debt)

    def _rest(self, seconds: float) -> None:
        """Take no connection for this long."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        self._pause = loop.call_later(seconds, loop.add_reader, self._socket, self._accept)


class _Joint:
    """One connection of the stranger, and one to the server once the first bytes are a client's.

    Callbacks in place of tasks: of each VM there is one all the time. Each way holds at most one piece that its other
    end has not taken, and reads nothing meanwhile.
    """

    __slots__ = ("_acceptor", "_beginning", "_frames", "_server", "_stalled", "_stranger", "_timer", "_until")

    def __init__(self, stranger: socket.socket, acceptor: Acceptor) -> None:
        self._acceptor = acceptor
        self._stranger = stranger
        self._server: socket.socket | None = None
        self._frames = FrameCheck()
        self._beginning = b""
        self._stalled = math.inf
        stranger.settimeout(0)
        loop = asyncio.get_running_loop()
        self._until = loop.time() + acceptor.bounds.handshake
        self._timer = loop.call_at(min(self._until, loop.time() + acceptor.bounds.silence), self._look)
        self._listen(stranger)

    def end(self, reason: str = "") -> None:
        """Close both connections."""
        loop = asyncio.get_running_loop()
        self._timer.cancel()
        for each in (self._stranger, self._server):
            if each is not None and each.fileno() >= 0:
                loop.remove_reader(each)
                loop.remove_writer(each)
                each.close()
        self._acceptor.ended(self, reason)

    def _listen(self, source: socket.socket) -> None:
        if source.fileno() >= 0:
            asyncio.get_running_loop().add_reader(source, self._step, self._receive, source)

    def _step(self, step: Callable[..., None], *arguments: object) -> None:
        """Do what an end is ready for."""
        try:
            step(*arguments)
        except BadFrames as error:
            self.end(str(error))
        except BlockingIOError:
            return
        except OSError:
            # One of both has gone.
            self.end()

    def _look(self) -> None:
        """End what was silent for too long, or did not read for about as long."""
        loop = asyncio.get_running_loop()
        silence = self._acceptor.bounds.silence
        if loop.time() >= min(self._until, self._stalled + silence):
            self.end("it was silent for too long, or slow")
        else:
            self._timer = loop.call_at(min(self._until, loop.time() + silence), self._look)

    def _receive(self, source: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if source is self._stranger and (debt := self._acceptor.debt()):
            loop.remove_reader(source)
            loop.call_later(debt, self._listen, source)
            return
        data = source.recv(_CHUNK_BYTES)
        if not data:
            self.end()
        elif source is self._stranger:
            self._check(data)
        else:
            self._send(data, source, self._stranger)

    def _check(self, data: bytes) -> None:
        before = self._frames.frames
        self._acceptor.spend(self._frames.feed(data))
        if self._frames.calls and self._frames.frames > before:
            self._until = asyncio.get_running_loop().time() + self._acceptor.bounds.silence
        if self._server is None:
            self._beginning += data
            if not self._frames.frames:
                return
            data, self._beginning = self._beginning, b""
            self._server = socket.socket(socket.AF_UNIX)
            self._server.settimeout(0)
            self._server.connect(self._acceptor.inner)
            self._listen(self._server)
        self._send(data, self._stranger, self._server)

    def _send(self, data: bytes, source: socket.socket, sink: socket.socket) -> None:
        try:
            sent = sink.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            loop = asyncio.get_running_loop()
            loop.remove_reader(source)
            loop.add_writer(sink, self._step, self._send_rest, data[sent:], source, sink)
            if sink is self._stranger:
                self._stalled = min(self._stalled, loop.time())

    def _send_rest(self, rest: bytes, source: socket.socket, sink: socket.socket) -> None:
        asyncio.get_running_loop().remove_writer(sink)
        if sink is self._stranger:
            self._stalled = math.inf
        self._listen(source)
        self._send(rest, source, sink)
