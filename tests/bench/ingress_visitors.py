"""Who measures the way from Envoy into a container: visitors on connections of their own, and many WebSockets."""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.ingress_app import MESSAGE
from support.envoy import EdgeUnderTest
from support.real_node import PATIENCE

WEBSOCKETS = 200
MESSAGES = 20
"""How many each WebSocket sends, one after the other."""
_CHUNK = 256 << 10
_PATHS = ("/", "/dev/")
"""Two routes of one user: each may have 128 connections."""
_SENT = bytes([0x82, 0x80 | MESSAGE, 0, 0, 0, 0])
_ECHOED = bytes([0x82, MESSAGE])

Timed = Callable[[], float]
"""Does something and returns the seconds it took; in a thread, as it blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingress:
    """An Envoy by which Bob reaches an app through the joints, and Alice without."""

    edge: EdgeUnderTest
    runner: asyncio.Runner

    def by_turns(self, joined: Timed, floor: Timed, *, rounds: int, warmup: int = 1) -> tuple[list[float], list[float]]:
        """Measure something through the joints by turns with its floor; seconds of each."""

        def measure() -> tuple[list[float], list[float]]:
            pairs = [(joined(), floor()) for _ in range(rounds + warmup)][warmup:]
            return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

        # The authorizer is a task of this process, and has to run meanwhile.
        return self.runner.run(asyncio.to_thread(measure))

    @contextmanager
    def visitor(self, user: str) -> Iterator[Visitor]:
        """Connect as a user."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self.edge.socket))
            yield Visitor(connection=connection, user=user)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """One connection of HTTP/1.1; blocks."""

    connection: socket.socket
    user: str

    def ask(self, line: str, *fields: str) -> bytes:
        """Send the head of a request; return the head of its answer, or of its beginning."""
        self.say(line, *fields)
        return self.head()

    def say(self, line: str, *fields: str) -> None:
        """Send the head of a request."""
        lines = (f"{line} HTTP/1.1", "Host: cell.test", f"Authorization: Bearer {self.user}", *fields, "", "")
        self.connection.sendall("\r\n".join(lines).encode())

    def head(self) -> bytes:
        """Read the head of an answer and nothing more."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            part = self.connection.recv(_CHUNK, socket.MSG_PEEK)
            assert part, f"the connection ended after {head!r}"
            end = (head + part).find(b"\r\n\r\n")
            head += self.connection.recv(len(part) if end < 0 else end + 4 - len(head))
        assert head.split(b" ")[1] in (b"200", b"101"), head
        return head

    def trip(self, path: str = "/") -> float:
        """Ask for something small."""
        begun = time.perf_counter()
        self.skip(self.ask(f"GET {path}"))
        return time.perf_counter() - begun

    def skip(self, head: bytes) -> None:
        """Read the body that follows a head."""
        left = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
        buffer = memoryview(bytearray(_CHUNK))
        while left:
            count = self.connection.recv_into(buffer[: min(left, _CHUNK)])
            assert count, f"{left} bytes are missing"
            left -= count

    def download(self, size: int) -> float:
        """Read so many bytes."""
        begun = time.perf_counter()
        head = self.ask(f"GET /download?size={size}")
        assert f"content-length: {size}\r".encode() in head.lower()
        self.skip(head)
        return time.perf_counter() - begun

    def upload(self, size: int) -> float:
        """Send so many bytes."""
        begun = time.perf_counter()
        self.say("POST /upload", f"Content-Length: {size}")
        for _ in range(size // _CHUNK):
            self.connection.sendall(bytes(_CHUNK))
        self.skip(self.head())
        return time.perf_counter() - begun


class WebSockets:
    """Many WebSockets of one user, of which each has a message under way."""

    def __init__(self, ingress: Ingress, user: str, stack: ExitStack) -> None:
        self._open: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        stack.callback(self._poll.close)
        for number in range(WEBSOCKETS):
            visitor = stack.enter_context(ingress.visitor(user))
            key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
            path = f"{_PATHS[number % len(_PATHS)]}ws"
            head = visitor.ask(
                f"GET {path}", "Upgrade: websocket", "Connection: Upgrade", key, "Sec-WebSocket-Version: 13"
            )
            assert head.startswith(b"HTTP/1.1 101")
            self._open[visitor.connection.fileno()] = visitor.connection
            self._poll.register(visitor.connection, select.EPOLLIN)
        self._sent = 0

    def echo(self) -> float:
        """Let each send its messages one after the other, and hold every answer to what was sent."""
        begun = time.perf_counter()
        left = dict.fromkeys(self._open, MESSAGES)
        awaited = {descriptor: self._send(end) for descriptor, end in self._open.items()}
        got = dict.fromkeys(self._open, b"")
        while awaited:
            for descriptor, _ in self._poll.poll(PATIENCE):
                got[descriptor] += self._open[descriptor].recv(1 << 16)
                assert awaited[descriptor].startswith(got[descriptor]), "not what was sent last"
                if got[descriptor] != awaited[descriptor]:
                    continue
                got[descriptor] = b""
                left[descriptor] -= 1
                if left[descriptor]:
                    awaited[descriptor] = self._send(self._open[descriptor])
                else:
                    del awaited[descriptor]
        return time.perf_counter() - begun

    def _send(self, connection: socket.socket) -> bytes:
        self._sent += 1
        message = b"%0*d" % (MESSAGE, self._sent)
        connection.sendall(_SENT + message)
        return _ECHOED + message
