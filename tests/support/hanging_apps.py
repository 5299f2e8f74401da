"""Apps that stop in the middle of HTTP, and what a visitor of each is to get of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.envoy import ALICE
from support.http_client import head

IDLE_SECONDS = 5.0
"""How long a stream may be silent where these apps are tried."""
_BODY = 1 << 20
_DRIP_SECONDS = 0.3
_BACKLOG = 256
_LENGTH = b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n"
_CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
_WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
_CLOSING = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
_UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a visitor gets: an answer of this status, and all of it; or this reason of the edge's."""

    status: int
    reason: str = ""
    whole: bool = True


TOO_SLOW = Told(status=504, reason="TOO_SLOW")
HUNG_UP = Told(status=502, reason="CONTAINER_HUNG_UP")
INVALID = Told(status=502, reason="CONTAINER_ANSWER_INVALID")
UNKNOWN = Told(status=502, reason="CONTAINER_STATUS_UNKNOWN")
# As long as Envoy has not the whole request it takes its client for the slow one.
UNREAD = Told(status=408, reason="TOO_SLOW")
BROKEN_OFF = Told(status=200, whole=False)
GOOD = Told(status=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """How far an app gets: what it reads, what it says, whether it closes then; and what its visitor is told."""

    told: Told
    says: bytes = b""
    reads_head: bool = True
    reads_body: int = 0
    drips: bytes = b""
    """Said byte by byte, each before a stream has been silent for too long."""
    for_ever: bool = False
    """Whether the last is said again and again."""
    closes: bool = False
    method: str = "GET"
    asks: tuple[tuple[str, str], ...] = ()
    """Further headers of the visitor's."""

    def request(self, path: str) -> bytes:
        """Return what the visitor sends."""
        body = bytes(_BODY) if self.method == "POST" else b""
        length = [("Content-Length", str(len(body)))] if body else []
        return head(self.method, path, user=ALICE, headers=[*self.asks, *length]) + body


_WEBSOCKET = (("Connection", "upgrade"), ("Upgrade", "websocket"))
_EXPECTS = (("Expect", "100-continue"),)
PHASES = {
    "never-reads": Phase(told=TOO_SLOW, reads_head=False),
    "never-reads-an-upload": Phase(told=UNREAD, reads_head=False, method="POST"),
    "reads-half-an-upload": Phase(told=UNREAD, reads_body=_BODY // 2, method="POST"),
    "reads-an-upload": Phase(told=TOO_SLOW, reads_body=_BODY, method="POST"),
    "never-answers": Phase(told=TOO_SLOW),
    "never-continues": Phase(told=UNREAD, method="POST", asks=_EXPECTS),
    "continues-only": Phase(told=UNREAD, says=b"HTTP/1.1 100 Continue\r\n\r\n", method="POST", asks=_EXPECTS),
    "hints-only": Phase(told=TOO_SLOW, says=b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"),
    "half-a-status-line": Phase(told=TOO_SLOW, says=b"HTTP/1.1 2"),
    "a-status-line": Phase(told=TOO_SLOW, says=b"HTTP/1.1 200 OK\r\n"),
    "half-a-header": Phase(told=TOO_SLOW, says=b"HTTP/1.1 200 OK\r\ncontent-le"),
    "headers-without-end": Phase(told=TOO_SLOW, says=_LENGTH[:-2]),
    "dripping-headers": Phase(told=TOO_SLOW, says=b"HTTP/1.1 200 OK\r\nx-a: ", drips=b"a", for_ever=True),
    "no-body": Phase(told=BROKEN_OFF, says=_LENGTH),
    "half-a-body": Phase(told=BROKEN_OFF, says=_LENGTH + b"half"),
    "no-chunk": Phase(told=BROKEN_OFF, says=_CHUNKED),
    "half-a-chunk-size": Phase(told=BROKEN_OFF, says=_CHUNKED + b"5"),
    "half-a-chunk": Phase(told=BROKEN_OFF, says=_CHUNKED + b"5\r\nha"),
    "chunk-after-chunk": Phase(told=BROKEN_OFF, says=_CHUNKED + b"5\r\nwhole\r\n"),
    "no-last-line": Phase(told=BROKEN_OFF, says=_CHUNKED + b"5\r\nwhole\r\n0\r\n"),
    "body-without-length": Phase(told=BROKEN_OFF, says=b"HTTP/1.1 200 OK\r\n\r\nbody"),
    # With signs of life it may take longer than a silence may.
    "dripping-body": Phase(told=GOOD, says=_LENGTH, drips=b"twenty bytes in all!"),
    "dripping-chunks": Phase(told=BROKEN_OFF, says=_CHUNKED, drips=b"1\r\na\r\n", for_ever=True),
    "never-closes": Phase(told=GOOD, says=_WHOLE),
    "promises-to-close": Phase(told=GOOD, says=_CLOSING),
    "answers-before-an-upload": Phase(told=GOOD, says=_CLOSING, method="POST"),
    "silent-websocket": Phase(told=Told(status=101), says=_UPGRADED, asks=_WEBSOCKET),
    "half-an-upgrade": Phase(told=UNREAD, says=_UPGRADED[:-2], asks=_WEBSOCKET),
    # Envoy passes on no body of what is not an upgrade.
    "refuses-the-upgrade": Phase(told=GOOD, says=_LENGTH, asks=_WEBSOCKET),
    "upgrades-unasked": Phase(told=UNKNOWN, says=_UPGRADED),
    "closes-at-once": Phase(told=HUNG_UP, reads_head=False, closes=True),
    "closes-on-an-upload": Phase(told=HUNG_UP, method="POST", closes=True),
    "closes-after-the-request": Phase(told=HUNG_UP, closes=True),
    "closes-in-the-status-line": Phase(told=INVALID, says=b"HTTP/1.1 2", closes=True),
    "closes-in-the-headers": Phase(told=INVALID, says=b"HTTP/1.1 200 OK\r\ncontent-le", closes=True),
    "closes-after-a-hint": Phase(told=HUNG_UP, says=b"HTTP/1.1 103 Early Hints\r\n\r\n", closes=True),
    "closes-before-the-body": Phase(told=BROKEN_OFF, says=_LENGTH, closes=True),
    "closes-in-the-body": Phase(told=BROKEN_OFF, says=_LENGTH + b"half", closes=True),
    "closes-before-a-chunk": Phase(told=BROKEN_OFF, says=_CHUNKED, closes=True),
    "closes-in-a-chunk": Phase(told=BROKEN_OFF, says=_CHUNKED + b"5\r\nha", closes=True),
    "closes-after-a-chunk": Phase(told=BROKEN_OFF, says=_CHUNKED + b"5\r\nwhole\r\n", closes=True),
    "closes-before-the-last-line": Phase(told=BROKEN_OFF, says=_CHUNKED + b"5\r\nwhole\r\n0\r\n", closes=True),
    "closes-after-the-answer": Phase(told=GOOD, says=_CLOSING, closes=True),
    "closes-to-end-the-body": Phase(told=GOOD, says=b"HTTP/1.1 200 OK\r\n\r\nbody", closes=True),
    "closes-in-the-upgrade": Phase(told=INVALID, says=_UPGRADED[:-2], asks=_WEBSOCKET, closes=True),
    "closes-a-websocket": Phase(told=Told(status=101), says=_UPGRADED, asks=_WEBSOCKET, closes=True),
}


@dataclass(eq=False)
class HangingApp:
    """An app that stops in one phase."""

    path: Path
    phase: Phase
    open_connections: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[HangingApp]:
        """Serve inside."""
        server = await asyncio.start_unix_server(self._accept, self.path, backlog=_BACKLOG)
        try:
            yield self
        finally:
            server.close()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open_connections += 1
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            # The edge hung up, or the test is over.
            pass
        finally:
            self.open_connections -= 1
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not await self._exchange(reader, writer):
            pass
        # What it has written is read before its end is.
        writer.write_eof()
        await writer.drain()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Get as far as this phase does; return whether it closes then, or could take another request."""
        phase = self.phase
        if phase.reads_head:
            await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(phase.reads_body)
        writer.write(phase.says)
        await writer.drain()
        while phase.drips:
            for number in range(len(phase.drips)):
                writer.write(phase.drips[number : number + 1])
                await writer.drain()
                await asyncio.sleep(_DRIP_SECONDS)
            if not phase.for_ever:
                break
        if not phase.closes and (phase.told != GOOD or phase.method == "POST"):
            await _until_hung_up(reader, reads=phase.reads_head and phase.method == "GET")
        return phase.closes


async def _until_hung_up(reader: asyncio.StreamReader, *, reads: bool) -> None:
    """Stay, and notice the end of the connection only where what comes is read."""
    if not reads:
        await asyncio.Event().wait()
    while await reader.read(1 << 16):
        pass
