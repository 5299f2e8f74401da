"""The hypervisor's side of a bridge: starting one and asking it for things."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cellmesh.hypervisor.bridge.control import MAX_LINE

FLAG = "--cellmesh-bridge"
"""The argument before the directory, by which a bridge is found among all processes."""
_SECONDS = 5.0
_SOURCES = Path(__file__).resolve().parents[3]
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from cellmesh.hypervisor.bridge.main import main; main(sys.argv[3:])"
)


class BridgeUnreachable(Exception):
    """No bridge answers in that directory."""


class BridgeRefused(Exception):
    """The bridge will not do what was asked."""


def command(directory: Path, uid: int) -> list[str]:
    """Return the command line of a bridge: isolated, without site packages, so that it starts in 20 ms."""
    return [sys.executable, "-I", "-S", "-c", _START, str(_SOURCES), FLAG, str(directory), str(uid), str(uid)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeClient:
    """Asks the bridge of one directory."""

    directory: Path

    async def add(self, name: str, port: int) -> None:
        """Listen on in/<name> for a guest port."""
        await self._ask({"add": {"name": name, "port": port}})

    async def remove(self, name: str) -> None:
        """Stop listening on in/<name>; open connections go on."""
        await self._ask({"remove": {"name": name}})

    async def stats(self) -> Mapping[str, object]:
        """Return what the bridge carried and dropped, and its listeners."""
        return (await self._ask({"stats": {}}))[1]

    async def stop(self) -> None:
        """End the bridge."""
        await self._ask({"stop": {}})

    async def pid(self) -> int:
        """Return the process that serves the control socket, as the kernel says."""
        return (await self._ask({"stats": {}}))[0]

    async def _ask(self, request: Mapping[str, object]) -> tuple[int, Mapping[str, object]]:
        try:
            async with asyncio.timeout(_SECONDS):
                return await self._exchange(request)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise BridgeUnreachable(f"The bridge in {self.directory} does not answer: {error!r}.") from error

    async def _exchange(self, request: Mapping[str, object]) -> tuple[int, Mapping[str, object]]:
        reader, writer = await asyncio.open_unix_connection(self.directory / "bridge.sock", limit=16 * MAX_LINE)
        try:
            peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            writer.write(json.dumps(request).encode() + b"\n")
            await writer.drain()
            reply = json.loads(await reader.readuntil(b"\n"))
        finally:
            writer.transport.abort()
        if not isinstance(reply, dict) or not isinstance(done := reply.get("ok", {}), dict):
            raise ValueError("not an object")
        if "error" in reply:
            raise BridgeRefused(f"The bridge in {self.directory} refused: {str(reply['error'])[:200]!r}.")
        return struct.unpack("3i", peer)[0], done
