"""Pings every worker of Envoy.

Envoy's main thread takes an update, hands it to the workers and says so at once. A worker does what it was handed
before it answers a ping that came after: so once each has answered, each has the update.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from cellmesh.hypervisor.edge.admin import EdgeAway, EnvoyAdmin

_PING = b"GET / HTTP/1.1\r\nHost: probe\r\n\r\n"
_MAX_HEAD = 16 << 10
_CONNECTIONS = r"^listener\.probe\.worker_\d+\.downstream_cx_active$"
_ATTEMPTS = 50
_PAUSE_SECONDS = 0.02
_FAULTS = (OSError, EOFError, asyncio.LimitOverrunError)
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ProbeFailed(Exception):
    """A worker could not be asked."""


class WorkerProbe:
    """Holds one connection to each worker of an Envoy."""

    def __init__(self, socket: Path, admin: EnvoyAdmin) -> None:
        self._socket = socket
        self._admin = admin
        self._connections: list[_Connection] = []
        self._turn = asyncio.Lock()

    async def __call__(self) -> None:
        """Return when every worker has done what it was handed before this call; raise ProbeFailed."""
        async with self._turn:
            try:
                await self._ping_each()
            except (*_FAULTS, EdgeAway) as error:
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

    async def _ping_each(self) -> None:
        if self._connections:
            try:
                return await self._ping()
            except _FAULTS:
                # Envoy was started again, or let an idle connection go.
                self.close()
        for _ in range(_ATTEMPTS):
            if await self._connect():
                return await self._ping()
            self.close()
            await asyncio.sleep(_PAUSE_SECONDS)
        raise EdgeAway("its workers do not take one connection each")

    async def _connect(self) -> bool:
        """Connect as often as there are workers; return whether each has one, as the listener should see to."""
        await self._open()
        while len(self._connections) < len(counts := await self._admin.stats(_CONNECTIONS)):
            await self._open()
        return bool(counts) and all(count == 1 for count in counts.values())

    async def _open(self) -> None:
        """Connect, and wait until a worker has taken the connection."""
        reader, writer = await asyncio.open_unix_connection(self._socket, limit=_MAX_HEAD)
        self._connections.append((reader, writer))
        writer.write(_PING)
        await reader.readuntil(b"\r\n\r\n")

    async def _ping(self) -> None:
        for _, writer in self._connections:
            writer.write(_PING)
        for reader, _ in self._connections:
            await reader.readuntil(b"\r\n\r\n")
