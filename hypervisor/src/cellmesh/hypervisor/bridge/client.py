"""The hypervisor's side of a bridge: starting one and asking it for things."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellmesh.hypervisor.bridge.control import MAX_LINE

FLAG = "--cellmesh-bridge"
"""The argument before the directory, by which a bridge is found among all processes."""
ASK_SECONDS = 5.0
"""How long a bridge may take to answer."""
_MAX_REPLY = 16 * MAX_LINE
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

    async def give(self, listener: socket.socket, name: str, port: int, *, limit: int) -> None:
        """Hand over a listening socket, to be joined to a guest port by at most so many connections at once."""
        await self._ask({"add": {"name": name, "port": port, "limit": limit}}, listener)

    async def remove(self, name: str) -> None:
        """Stop listening on a listener; open connections go on."""
        await self._ask({"remove": {"name": name}})

    async def cut(self, name: str) -> None:
        """End the open connections of a listener; it goes on listening."""
        await self._ask({"cut": {"name": name}})

    async def stats(self) -> Mapping[str, object]:
        """Return what the bridge carried and dropped, and its listeners."""
        return (await self._ask({"stats": {}}))[1]

    async def stop(self) -> None:
        """End the bridge."""
        await self._ask({"stop": {}})

    async def pid(self) -> int:
        """Return the process that serves the control socket, as the kernel says."""
        return (await self._ask({"stats": {}}))[0]

    async def _ask(self, request: Mapping[str, object], *given: socket.socket) -> tuple[int, Mapping[str, object]]:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await self._exchange(request, given)
        except (OSError, EOFError, ValueError) as error:
            raise BridgeUnreachable(f"The bridge in {self.directory} does not answer: {error!r}.") from error

    async def _exchange(
        self, request: Mapping[str, object], given: Sequence[socket.socket]
    ) -> tuple[int, Mapping[str, object]]:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
            await loop.sock_connect(connection, str(self.directory / "bridge.sock"))
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            # One line fits into a fresh socket, so this cannot block.
            socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [each.fileno() for each in given])
            line = b""
            while not line.endswith(b"\n"):
                part = await loop.sock_recv(connection, _MAX_REPLY)
                line += part
                if not part or len(line) > _MAX_REPLY:
                    raise EOFError("no whole line")
        reply = json.loads(line)
        if not isinstance(reply, dict) or not isinstance(done := reply.get("ok", {}), dict):
            raise ValueError("not an object")
        if "error" in reply:
            raise BridgeRefused(f"The bridge in {self.directory} refused: {str(reply['error'])[:200]!r}.")
        return struct.unpack("3i", peer)[0], done
