"""What a simulated container serves: HTTP/1.1 answers that say who gave them, and a WebSocket that echoes.

GET /bytes/<n>   n bytes of a pattern
any upgrade      a WebSocket that sends back each message
anything else    JSON: vm_id, epoch, container, generation, what was asked, and the headers a test may look for
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from simulator.websocket import accept_key, echo

_HEAD_SECONDS = 60.0
_CHUNK = 64 * 1024
_PATTERN = bytes(range(256)) * (_CHUNK // 256)
_SHOWN = frozenset({"host", "cookie", "authorization", "traceparent", "user-agent", "content-type"})
_SHOWN_PREFIX = "x-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Whose answers these are."""

    vm_id: str
    epoch: int
    container: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    method: str
    target: str
    headers: Mapping[str, str]


async def serve(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection until it ends."""
    # Bytes that are no request end the connection, as its end does.
    with contextlib.suppress(ConnectionError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError):
        while (request := await _request(reader)) is not None:
            if request.headers.get("upgrade", "").lower() == "websocket":
                _upgrade(server, request, writer)
                await echo(reader, writer)
                return
            received = await _discard_body(reader, request.headers)
            await _answer(server, request, received, writer)
            if request.headers.get("connection", "").lower() == "close":
                return


async def _request(reader: asyncio.StreamReader) -> _Request | None:
    async with asyncio.timeout(_HEAD_SECONDS):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    headers: dict[str, str] = {}
    for line in filter(None, lines):
        name, _, value = line.partition(":")
        key = name.strip().lower()
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    return _Request(method=method, target=rest.rpartition(" ")[0], headers=headers)


async def _discard_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> int:
    """Read the body and return its size."""
    if "chunked" not in headers.get("transfer-encoding", "").lower():
        return await _discard(reader, int(headers.get("content-length", "0")))
    received = 0
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        received += await _discard(reader, size)
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        continue  # trailers
    return received


async def _discard(reader: asyncio.StreamReader, size: int) -> int:
    left = size
    while left:
        if not (data := await reader.read(min(left, _CHUNK))):
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(data)
    return size


async def _answer(server: Server, request: _Request, received: int, writer: asyncio.StreamWriter) -> None:
    path = request.target.partition("?")[0]
    size = path.removeprefix("/bytes/")
    if path.startswith("/bytes/") and size.isdigit():
        _head(server, writer, "application/octet-stream", int(size))
        if request.method != "HEAD":
            await _send(writer, int(size))
    else:
        body = json.dumps(_told(server, request, received)).encode()
        _head(server, writer, "application/json", len(body))
        if request.method != "HEAD":
            writer.write(body)
    await writer.drain()


async def _send(writer: asyncio.StreamWriter, size: int) -> None:
    for offset in range(0, size, _CHUNK):
        writer.write(_PATTERN[: min(_CHUNK, size - offset)])
        await writer.drain()


def _told(server: Server, request: _Request, received: int) -> dict[str, object]:
    return {
        "vm_id": server.vm_id,
        "epoch": server.epoch,
        "container": server.container,
        "generation": server.generation,
        "method": request.method,
        "target": request.target,
        "received": received,
        "headers": {
            name: value for name, value in request.headers.items() if name in _SHOWN or name.startswith(_SHOWN_PREFIX)
        },
    }


def _head(server: Server, writer: asyncio.StreamWriter, kind: str, size: int) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\n"
        b"content-type: %s\r\n"
        b"content-length: %d\r\n"
        b"x-answered-by: %s\r\n"
        b"\r\n" % (kind.encode(), size, _signature(server))
    )


def _upgrade(server: Server, request: _Request, writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"upgrade: websocket\r\n"
        b"connection: Upgrade\r\n"
        b"sec-websocket-accept: %s\r\n"
        b"x-answered-by: %s\r\n"
        b"\r\n" % (accept_key(request.headers.get("sec-websocket-key", "")), _signature(server))
    )


def _signature(server: Server) -> bytes:
    return f"{server.vm_id} {server.epoch} {server.container} {server.generation}".encode()
