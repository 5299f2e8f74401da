"""What stands between Envoy and its authorizer, and can fail as a process or a machine does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

_BLOCK = 1 << 16
_TRICKLE_SECONDS = 0.2
_GARBAGE = b"SSH-2.0-OpenSSH_9.2p1\r\n"


class Fault(Enum):
    """What is wrong with an authorizer."""

    NONE = auto()
    GONE = auto()
    """Its socket's name is gone, and so are its connections."""
    REFUSES = auto()
    """Nobody listens at its socket, and its connections are gone."""
    HANGS = auto()
    """It takes connections and reads nothing, as a stopped process does."""
    HANGS_UP = auto()
    """It ends each connection at the first byte."""
    TRICKLES = auto()
    """It sends a byte now and then."""
    TALKS_NONSENSE = auto()
    """It speaks another protocol."""


@dataclass(eq=False)
class Gate:
    """Takes the place of an authorizer's socket and joins each connection to the authorizer, unless there is a fault.

    A connection that was made while the authorizer hung stays as it is for ever, as one to a process that is stuck.
    """

    path: Path
    behind: Path
    fault: Fault = Fault.NONE
    connections: int = 0
    """How many are open."""
    most: int = 0
    """How many were open at once."""
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def fail(self, fault: Fault) -> None:
        """Let the authorizer fail so from now on, on connections that are there as well; NONE mends it."""
        self.fault = fault
        if fault in (Fault.GONE, Fault.REFUSES):
            await self._close()
        if fault is Fault.GONE:
            self.path.unlink()
        if fault is Fault.NONE and self._server is None:
            self.path.unlink(missing_ok=True)
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self.path)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.most = max(self.most, self.connections)
        try:
            await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            # One side went away, or the gate closes.
            pass
        finally:
            self.connections -= 1
            self._tasks.discard(task)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self.behind)
        if self.fault is Fault.TALKS_NONSENSE:
            writer.write(_GARBAGE)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on(reader, far_writer, slowly=False))
                both.create_task(self._pass_on(far_reader, writer, slowly=True))
        except* OSError:
            pass
        finally:
            far_writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slowly: bool) -> None:
        while True:
            if self.fault is Fault.HANGS:
                reader._transport.pause_reading()  # type: ignore[attr-defined]
                await asyncio.Event().wait()
            data = await reader.read(_BLOCK)
            if not data or self.fault is Fault.HANGS_UP:
                raise ConnectionResetError
            while self.fault is Fault.TRICKLES and slowly and data:
                writer.write(data[:1])
                data = data[1:]
                await asyncio.sleep(_TRICKLE_SECONDS)
            if self.fault is not Fault.TALKS_NONSENSE:
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def gate(path: Path) -> AsyncIterator[Gate]:
    """Yield a gate in the place of the socket at `path`, which is moved away."""
    behind = path.with_suffix(".behind")
    path.rename(behind)
    it = Gate(path=path, behind=behind)
    await it._listen()
    try:
        yield it
    finally:
        await it._close()
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        behind.rename(path)
