"""The hybrid vsock of a simulated VM: the same words on the host's side, coroutines instead of a guest's ports."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from pathlib import Path
from typing import Protocol

from chv53.api_socket import accept_forever, listen, stop_listening

_LONGEST_COMMAND = 32
_VERB = b"connect "
_FIRST_HOST_PORT = 1 << 30
_CHUNK = 64 * 1024
_MOST_CONNECTIONS = 1023


class Ports(Protocol):
    """What listens inside the guest."""

    def listens(self, port: int) -> bool:
        """Whether a connection to this port is taken."""

    async def serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection; it is closed on return."""


class SimulatedVsock:
    """One VM's vsock socket; `bind` and `accept_forever` are apart because binding is part of `vm.boot`."""

    def __init__(self, path: Path, *, owner: int) -> None:
        self.path = path
        self._listener = listen(path)
        os.chown(path, owner, owner)
        self._next_host_port = _FIRST_HOST_PORT
        self._connections: set[asyncio.StreamWriter] = set()

    def close(self, *, crashed: bool = False) -> None:
        """Stop listening and cut every connection; a crash leaves the socket file behind."""
        stop_listening(self._listener)
        self.reset_connections()
        if not crashed:
            self.path.unlink(missing_ok=True)

    def reset_connections(self) -> None:
        """Cut every connection at once, as a vsock reset does."""
        for writer in tuple(self._connections):
            writer.transport.abort()

    async def accept_forever(self, ports: Ports) -> None:
        """Serve the host's connections until cancelled; all of them end with this."""
        await accept_forever(self._listener, functools.partial(self._serve, ports))

    async def dial_host(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect from the guest to a port of the host; raises OSError when nothing listens there."""
        reader, writer = await asyncio.open_unix_connection(f"{self.path}_{port}")
        self._connections.add(writer)
        return reader, writer

    def hang_up(self, writer: asyncio.StreamWriter) -> None:
        """Close a connection that `dial_host` made."""
        self._connections.discard(writer)
        writer.close()

    async def _serve(self, ports: Ports, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= _MOST_CONNECTIONS:
            return
        self._connections.add(writer)
        try:
            port = await _read_command(reader)
            if port is not None and ports.listens(port):
                writer.write(b"OK %d\n" % self._next_host_port)
                self._next_host_port += 1
                await ports.serve(port, reader, writer)
        finally:
            self.hang_up(writer)


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path) -> None:
    """Join a connection to a unix socket, half-closes included, until both directions have ended."""
    try:
        inner_reader, inner_writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        return  # nobody listens there, not yet or no longer: it ends as at a port without a listener
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(reader, inner_writer))
            group.create_task(_copy(inner_reader, writer))
    finally:
        inner_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):  # one side gone is the end of this direction
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    if not writer.is_closing() and writer.can_write_eof():
        with contextlib.suppress(OSError):  # the other side may have gone meanwhile
            writer.write_eof()


async def _read_command(reader: asyncio.StreamReader) -> int | None:
    line = b""
    while not line.endswith(b"\n"):
        octet = await reader.read(1)
        line += octet
        if not octet or len(line) > _LONGEST_COMMAND or not _VERB.startswith(line[: len(_VERB)].lower()):
            return None
    digits = line[len(_VERB) :].strip()
    return int(digits) if digits.isdigit() and int(digits) < 1 << 32 else None
