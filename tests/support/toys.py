"""What stands around an edge under test: containers that answer over a unix socket, and an authorizer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.rpc import code_pb2, status_pb2

from cellmesh.envoy.auth.v3 import external_auth_pb2

USER_HEADER = "x-cellmesh-user"
_REPLACE = 2
_BACKLOG = 1024  # a full one turns Envoy away, which does not wait
_UUID = re.compile(r"^Bearer ([0-9a-f-]{36})$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request as a container got it."""

    line: str
    headers: list[tuple[str, str]]
    body_bytes: int

    def all(self, name: str) -> list[str]:
        """Return the values of a header."""
        return [value for key, value in self.headers if key == name]


@dataclass(eq=False)
class Toy:
    """A container: an HTTP/1.1 server that remembers what it was asked.

    A path in `raw` is answered with those bytes and the end of the connection.
    `/ws` upgrades and echoes, `/late-ws` does so at `release`, `/events` streams one event for each `release`,
    `/download/<bytes>` and `/upload` move bytes, `/slow` answers at `release`, `/die` hangs up, and all else says who
    answered.
    """

    name: str
    path: Path
    seen: list[Seen] = field(default_factory=list)
    heads: int = 0
    connections: int = 0
    open_connections: int = 0
    raw: dict[str, bytes] = field(default_factory=dict)
    release: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Toy]:
        """Serve inside."""
        tasks: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            self.connections += 1
            self.open_connections += 1
            try:
                await self._serve(reader, writer)
            except (OSError, EOFError, asyncio.CancelledError):
                # The client went away, or the test is over.
                pass
            finally:
                self.open_connections -= 1
                tasks.discard(task)
                writer.transport.abort()

        server = await asyncio.start_unix_server(accept, self.path, limit=1 << 20, backlog=_BACKLOG)
        try:
            yield self
        finally:
            # asyncio loses the socket of a connection it has accepted when its server is closed before the next turn.
            for listener in server.sockets:
                asyncio.get_running_loop().remove_reader(listener.fileno())
            await asyncio.sleep(0)
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.heads += 1
            line, *fields = head[:-4].split("\r\n")
            headers = [(name.lower(), value.strip()) for name, _, value in (each.partition(":") for each in fields)]
            path = line.split(" ")[1].partition("?")[0]
            if path in self.raw:
                self.seen.append(Seen(line=line, headers=headers, body_bytes=0))
                writer.write(self.raw[path])
                await writer.drain()
                return
            if path in ("/ws", "/late-ws"):
                self.seen.append(Seen(line=line, headers=headers, body_bytes=0))
                if path == "/late-ws":
                    await self.release.acquire()
                await self._echo(reader, writer)
                return
            body_bytes = await _drain_body(reader, dict(headers))
            self.seen.append(Seen(line=line, headers=headers, body_bytes=body_bytes))
            await self._answer(writer, path, self.seen[-1])

    async def _answer(self, writer: asyncio.StreamWriter, path: str, seen: Seen) -> None:
        if path == "/die":
            raise EOFError
        if path == "/slow":
            await self.release.acquire()
        if path == "/events":
            await self._events(writer)
        if path.startswith("/download/"):
            await _download(writer, int(path.rpartition("/")[2]))
            return
        body = json.dumps({"toy": self.name, "line": seen.line, "headers": seen.headers, "body_bytes": seen.body_bytes})
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nserver: toy/1.0\r\nx-powered-by: toys\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body.encode())
        )
        await writer.drain()

    async def _events(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        number = 0
        while True:
            await self.release.acquire()
            number += 1
            event = b"data: %d\n\n" % number
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-toy: %s\r\n\r\n"
            % self.name.encode()
        )
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def _drain_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> int:
    if headers.get("transfer-encoding") == "chunked":
        total = 0
        while size := int((await reader.readline()).strip(), 16):
            await reader.readexactly(size + 2)
            total += size
        await reader.readline()
        return total
    left = length = int(headers.get("content-length", "0"))
    while left:
        data = await reader.read(min(left, 1 << 20))
        if not data:
            raise EOFError
        left -= len(data)
    return length


async def _download(writer: asyncio.StreamWriter, size: int) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
    block = bytes(1 << 18)
    while size:
        writer.write(block[: min(size, len(block))])
        await writer.drain()
        size -= min(size, len(block))


Verdict = external_auth_pb2.CheckResponse | bytes


def allowed(user: str, **headers: str) -> external_auth_pb2.CheckResponse:
    """Return the word that a request is `user`'s, with further headers set."""
    told = {USER_HEADER: user} | {name.replace("_", "-"): value for name, value in headers.items()}
    return external_auth_pb2.CheckResponse(
        status=status_pb2.Status(code=code_pb2.OK),
        ok_response=external_auth_pb2.OkHttpResponse(
            headers=[
                external_auth_pb2.HeaderValueOption(
                    header=external_auth_pb2.HeaderValue(key=name, value=value), append_action=_REPLACE
                )
                for name, value in told.items()
            ],
            headers_to_remove=["authorization"],
        ),
    )


def denied(status: int, body: str = "", **headers: str) -> external_auth_pb2.CheckResponse:
    """Return the word that a request is nobody's."""
    return external_auth_pb2.CheckResponse(
        status=status_pb2.Status(code=code_pb2.UNAUTHENTICATED),
        denied_response=external_auth_pb2.DeniedHttpResponse(
            status=external_auth_pb2.HttpStatus(code=status),
            body=body,
            headers=[
                external_auth_pb2.HeaderValueOption(
                    header=external_auth_pb2.HeaderValue(key=name.replace("_", "-"), value=value)
                )
                for name, value in headers.items()
            ],
        ),
    )


def by_token(request: external_auth_pb2.CheckRequest) -> Verdict:
    """Believe `authorization: Bearer <user>`."""
    match = _UUID.match(request.attributes.request.http.headers.get("authorization", ""))
    return allowed(match[1]) if match else denied(401, "who are you?", content_type="text/plain")


@dataclass(eq=False)
class Authorizer:
    """Answers as `answer` says, and remembers what it was asked."""

    path: Path
    answer: Callable[[external_auth_pb2.CheckRequest], Verdict] = by_token
    seen: list[external_auth_pb2.CheckRequest] = field(default_factory=list)
    delay: asyncio.Event | None = None
    """Waited for before each answer."""
    server: grpc.aio.Server | None = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Authorizer]:
        """Serve inside."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handler = grpc.unary_unary_rpc_method_handler(
            self._check,
            request_deserializer=external_auth_pb2.CheckRequest.FromString,
            response_serializer=lambda verdict: verdict if isinstance(verdict, bytes) else verdict.SerializeToString(),
        )
        service = grpc.method_handlers_generic_handler("envoy.service.auth.v3.Authorization", {"Check": handler})
        server.add_generic_rpc_handlers((service,))
        server.add_insecure_port(f"unix:{self.path}")
        await server.start()
        self.server = server
        try:
            yield self
        finally:
            await self.hang_up()
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()

    async def hang_up(self) -> None:
        """Stop answering."""
        if self.server is not None:
            await self.server.stop(None)

    async def _check(self, request: external_auth_pb2.CheckRequest, context: grpc.aio.ServicerContext) -> Verdict:
        self.seen.append(request)
        if self.delay is not None:
            await self.delay.wait()
        return self.answer(request)
