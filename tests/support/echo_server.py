"""An app that upgrades whatever is asked, and says back what it is told: python echo_server.py SOCKET."""

from __future__ import annotations

import asyncio
import sys

_UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"


class _Echo(asyncio.Protocol):
    def __init__(self) -> None:
        self._head = b""
        self._upgraded = False
        self._transport = asyncio.Transport()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._upgraded:
            self._transport.write(data)
            return
        self._head += data
        if b"\r\n\r\n" in self._head:
            self._upgraded = True
            self._transport.write(_UPGRADED)


async def _main() -> None:
    server = await asyncio.get_running_loop().create_unix_server(_Echo, sys.argv[1], backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()


asyncio.run(_main())
