"""Clients that say exactly what a test wants said: HTTP/1.1 byte for byte, and HTTP/2 by frames."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events

SECONDS = 20.0
"""How long an answer may take, on a busy machine."""
Address = Path | tuple[str, int]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body, decoded."""
        return json.loads(self.body)

    def header_of_request(self, name: str) -> list[str]:
        """Return what a toy saw of a header."""
        return [value for key, value in self.json()["headers"] if key == name]


@asynccontextmanager
async def connected(address: Address, tls: ssl.SSLContext | None = None, host: str = "") -> AsyncIterator[Connection]:
    """Yield a connection."""
    if isinstance(address, Path):
        reader, writer = await asyncio.open_unix_connection(address, limit=1 << 22)
    else:
        name = host if tls else None
        reader, writer = await asyncio.open_connection(*address, ssl=tls, server_hostname=name, limit=1 << 22)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def answer(reader: asyncio.StreamReader) -> Answer:
    """Read one answer."""
    async with asyncio.timeout(SECONDS):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head[:-4].split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in fields)}
        status = int(line.split(" ")[1])
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while size := int((await reader.readline()).strip(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        elif status not in (101, 204, 304):
            body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(status=status, headers=headers, body=body)


def head(
    method: str, path: str, *, host: str = "cell.test", user: str = "", headers: Sequence[tuple[str, str]] = ()
) -> bytes:
    """Return the head of a request of `user`."""
    fields = [("Host", host), *([("Authorization", f"Bearer {user}")] if user else []), *headers]
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def get(address: Address, path: str, *, method: str = "GET", body: bytes = b"", **options: Any) -> Answer:
    """Ask once, on a connection of its own."""
    extra = [("Content-Length", str(len(body)))] if body else []
    options["headers"] = [*options.get("headers", ()), *extra]
    async with connected(address) as (reader, writer):
        writer.write(head(method, path, **options) + body)
        return await answer(reader)


async def say(address: Address, data: bytes, *, seconds: float = SECONDS) -> bytes:
    """Send bytes, and return all that comes until the other side hangs up or falls silent."""
    async with connected(address) as (reader, writer):
        writer.write(data)
        got = b""
        try:
            while True:
                async with asyncio.timeout(1.0 if got else seconds):
                    data = await reader.read(65536)
                if not data:
                    return got
                got += data
        except (TimeoutError, ConnectionError):
            return got


class Http2:
    """One HTTP/2 connection that does as it is told; nothing is checked before it is sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
        )
        self.connection = h2.connection.H2Connection(config)
        self.connection.initiate_connection()
        self.ended: dict[int, dict[str, str]] = {}
        self.reset: dict[int, int] = {}
        self.bodies: dict[int, bytes] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.finished: set[int] = set()
        self.goodbye: int | None = None
        self.pongs = 0
        self.flush()

    def flush(self) -> None:
        """Send what is to be sent."""
        self._writer.write(self.connection.data_to_send())

    def ask(
        self, path: str, *, user: str = "", method: str = "GET", more: Mapping[str, str] | None = None, end: bool = True
    ) -> int:
        """Begin a request; return its stream."""
        stream = self.connection.get_next_available_stream_id()
        headers = {":method": method, ":scheme": "http", ":authority": "cell.test", ":path": path}
        if user:
            headers["authorization"] = f"Bearer {user}"
        self.connection.send_headers(stream, [*headers.items(), *(more or {}).items()], end_stream=end)
        return stream

    async def hear(self) -> bool:
        """Take in what comes next; return False once the other side has hung up."""
        async with asyncio.timeout(SECONDS):
            try:
                data = await self._reader.read(65536)
            except ConnectionError:
                return False
        if not data:
            return False
        for event in self.connection.receive_data(data):
            self._note(event)
        self.flush()
        return True

    async def answers(self, streams: Sequence[int]) -> list[dict[str, str]]:
        """Return the headers of the answers to these, an empty one for a stream that was reset."""
        while not all(stream in self.ended or stream in self.reset for stream in streams):
            if not await self.hear():
                break
        return [self.ended.get(stream, {}) for stream in streams]

    def _note(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived():
                self.ended[event.stream_id] = dict(event.headers)
            case h2.events.DataReceived():
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.TrailersReceived():
                self.trailers[event.stream_id] = dict(event.headers)
            case h2.events.StreamEnded():
                self.finished.add(event.stream_id)
            case h2.events.StreamReset():
                self.reset[event.stream_id] = int(event.error_code)
            case h2.events.PingAckReceived():
                self.pongs += 1
            case h2.events.ConnectionTerminated():
                self.goodbye = int(event.error_code)
            case _:
                pass
