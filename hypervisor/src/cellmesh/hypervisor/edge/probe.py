"""Pings every worker of Envoy.

Envoy's main thread takes an update, hands it to the workers and says so at once. A worker does what it was handed
before it answers a ping that came after: so once each has answered, each has the update.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

_PING = b"GET / HTTP/1.1\r\nHost: probe\r\n\r\n"
_MAX_HEAD = 16 << 10
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ProbeFailed(Exception):
    """A worker could not be asked."""


class WorkerProbe:
    """Holds a connection to each worker: the listener shares them out evenly."""

    def __init__(self, socket: Path, *, workers: int) -> None:
        self._socket = socket
        self._workers = workers
        self._connections: list[_Connection] = []
        self._turn = asyncio.Lock()

    async def __call__(self) -> None:
        """Return when every worker has done what it was handed before this call; raise ProbeFailed."""
        async with self._turn:
            try:
                try:
                    await self._ping_all()
                except (OSError, EOFError, asyncio.LimitOverrunError):
                    # Envoy was started again, or let an idle connection go: all are made anew, so that they are even.
                    self.close()
                    await self._ping_all()
            except (OSError, EOFError, asyncio.LimitOverrunError) as error:
                self.close()
                raise ProbeFailed(f"A worker of the edge cannot be asked: {error}.") from error
            except BaseException:
                # An answer that nobody reads would be taken for the next one's.
                self.close()
                raise

    def close(self) -> None:
        """Let the connections go."""
        for _, writer in self._connections:
            writer.transport.abort()
        self._connections.clear()

    async def _ping_all(self) -> None:
        while len(self._connections) < self._workers:
            self._connections.append(await asyncio.open_unix_connection(self._socket, limit=_MAX_HEAD))
        for _, writer in self._connections:
            writer.write(_PING)
        for reader, _ in self._connections:
            await reader.readuntil(b"\r\n\r\n")
