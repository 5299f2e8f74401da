"""An app that takes nothing but HTTP/1.1 in its strict form, and remembers each request and whatever was no request."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ (/[!-~]*) HTTP/1\.1")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([\t -~\x80-\xff]*)")
_SIZE = re.compile(rb"[0-9a-f]{1,8}\r\n")
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class _NotStrict(Exception):
    """What came can be read in two ways."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as the app got it."""

    path: str
    user: str
    request_id: str


@dataclass(eq=False)
class StrictApp:
    """Answers each request, also one to upgrade, as if it were a plain one."""

    path: Path
    seen: list[Request] = field(default_factory=list)
    faults: list[bytes] = field(default_factory=list)
    """What was no strict request."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[StrictApp]:
        """Serve inside."""
        server = await asyncio.start_unix_server(self._accept, self.path, backlog=1024)
        try:
            yield self
        finally:
            server.close()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                await self._exchange(reader, writer)
        except _NotStrict as fault:
            self.faults.append(fault.args[0])
        except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            # What breaks off is no whole request, and was none of the edge's that it has ended.
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, *fields = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
        named = [_FIELD.fullmatch(each) for each in fields]
        matched = _LINE.fullmatch(line)
        if matched is None or None in named:
            raise _NotStrict(b"\r\n".join((line, *fields)))
        headers = [(each[1].lower(), each[2]) for each in named if each is not None]
        length, encoding = (
            [value for name, value in headers if name == wanted] for wanted in (b"content-length", b"transfer-encoding")
        )
        is_framed_once = len(length) + len(encoding) <= 1
        if not is_framed_once or encoding not in ([], [b"chunked"]) or not all(map(bytes.isdigit, length)):
            raise _NotStrict(b"\r\n".join((line, *fields)))
        self.seen.append(
            Request(
                path=matched[1].decode(),
                user=_only(headers, b"x-cellmesh-user"),
                request_id=_only(headers, b"x-request-id"),
            )
        )
        if encoding:
            await _skip_chunks(reader)
        else:
            await reader.readexactly(int(length[0]) if length else 0)
        writer.write(_ANSWER)
        await writer.drain()


def _only(headers: list[tuple[bytes, bytes]], name: bytes) -> str:
    """Return the value of a header that is there once; nothing if it is not, or there twice."""
    values = [value for each, value in headers if each == name]
    return values[0].decode("latin-1") if len(values) == 1 else ""


async def _skip_chunks(reader: asyncio.StreamReader) -> None:
    size = 1
    while size:
        line = await reader.readuntil(b"\r\n")
        if _SIZE.fullmatch(line) is None:
            raise _NotStrict(line)
        size = int(line, 16)
        if size:
            await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise _NotStrict(b"chunk or trailers without an end")
