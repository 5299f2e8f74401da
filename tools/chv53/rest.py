"""The HTTP/1.1 that cloud-hypervisor speaks on its API socket: small requests, connections kept open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from chv53.answers import Answer, malformed

MOST_BODY_BYTES = 4 * 1024 * 1024
_METHODS = frozenset({"GET", "PUT", "PATCH"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; a missing body and an empty one are the same."""

    method: str
    path: str
    body: bytes


Handler = Callable[[Request], Awaitable[Answer | None]]


class MalformedRequestError(Exception):
    """The bytes were no request; the text goes to the client."""


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """Read one request, None at the end of the connection; raises MalformedRequestError."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except asyncio.LimitOverrunError as error:
        raise MalformedRequestError("Header section is too long.") from error
    lines = head.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3:
        raise MalformedRequestError("Invalid HTTP Request: Request line is malformed.")
    method, target, version = parts
    if method not in _METHODS:
        raise MalformedRequestError("Invalid HTTP Method: Unsupported HTTP method.")
    if version not in {"HTTP/1.0", "HTTP/1.1"}:
        raise MalformedRequestError("Invalid HTTP Version: Unsupported HTTP version.")
    size = _content_length(lines[1:])
    try:
        body = await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return Request(method=method, path=target.removeprefix("http://localhost").split("?")[0], body=body)


def _content_length(lines: list[str]) -> int:
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-length":
            if not value.strip().isdigit() or int(value) > MOST_BODY_BYTES:
                raise MalformedRequestError("Payload is too large.")
            return int(value)
    return 0


async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handler) -> None:
    """Answer the requests of one connection until it ends; an answer of None cuts it."""
    try:
        while (request := await read_request(reader)) is not None:
            answer = await handle(request)
            if answer is None:
                return
            writer.write(answer.encode())
            await writer.drain()
    except MalformedRequestError as error:
        writer.write(malformed(str(error)).encode())
    except ConnectionError:
        return
    finally:
        writer.close()
