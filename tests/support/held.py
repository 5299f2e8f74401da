"""A line between the hypervisor and Envoy that can be held: Envoy goes on with what it was told before."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

_CHUNK = 64 << 10


@dataclass(eq=False)
class HeldLine:
    """Carries what Envoy and the hypervisor say to each other; while held, nothing reaches Envoy."""

    _moving: asyncio.Event = field(default_factory=asyncio.Event)
    _holders: int = 0

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Let Envoy hear nothing inside."""
        self._holders += 1
        self._moving.clear()
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._moving.set()

    @asynccontextmanager
    async def serving(self, directory: Path) -> AsyncIterator[str]:
        """Carry inside; yield the name of the configuration in which Envoy takes this line for the hypervisor."""
        hypervisor, socket = directory / "edge.sock", directory / "held.sock"
        there = (directory / "envoy.json").read_text()
        configuration = directory / "held.json"
        configuration.write_text(there.replace(json.dumps(str(hypervisor)), json.dumps(str(socket))))
        assert configuration.read_text() != there
        server = await asyncio.start_unix_server(functools.partial(self._carry, hypervisor), socket)
        for path in (configuration, socket):
            shutil.chown(path, group=directory.stat().st_gid)
            path.chmod(0o660)
        self._moving.set()
        try:
            yield configuration.name
        finally:
            server.close()
            socket.unlink()

    async def _carry(self, hypervisor: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Join one connection of Envoy to the hypervisor."""
        with contextlib.closing(writer):
            try:
                there, back = await asyncio.open_unix_connection(hypervisor)
            except OSError:
                return
            with contextlib.closing(back):
                pumps = [
                    asyncio.ensure_future(_pump(reader, back)),
                    asyncio.ensure_future(self._pump_held(there, writer)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()

    async def _pump_held(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                await self._moving.wait()
                writer.write(data)
                await writer.drain()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
