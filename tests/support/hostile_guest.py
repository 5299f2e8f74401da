"""A simulated guest that lies when told to: in an answer, in the bytes that carry it, or by saying nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from simulator import Hub, SimulatedGuest
from simulator.machine import SimulatedMachine

Requests = AsyncIterator[bytes]
Context = Any
Lie = Callable[[Requests, Context], AsyncIterator[bytes]]
"""Answers a call with bytes in place of messages; may end it with an error of its own."""
Bytes = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Talks to the host below gRPC."""


class HostileGuest(SimulatedGuest):
    """Honest until `lies` has an entry for a method, or `wire` says how to treat the host's next connections."""

    def __init__(self, machine: SimulatedMachine, hub: Hub) -> None:
        self.lies: dict[str, Lie] = {}
        self.wire: Bytes | None = None
        super().__init__(machine, hub)

    def make_server(self) -> grpc.aio.Server:
        """Return a server that asks first whether a lie was ordered."""
        return grpc.aio.server(
            interceptors=[_Liar(self.lies)],
            options=[("grpc.max_metadata_size", 1 << 20), ("grpc.absolute_max_metadata_size", 1 << 20)],
        )

    async def serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection of the host as ordered."""
        if self.wire is None:
            await super().serve(port, reader, writer)
        else:
            await self.wire(reader, writer)

    def cut(self) -> None:
        """Break the host's connections, so that the next ones meet `wire`."""
        assert self.machine.vsock is not None
        self.machine.vsock.reset_connections()


class _Liar(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # at run time it takes none
    def __init__(self, lies: dict[str, Lie]) -> None:
        self._lies = lies

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = str(handler_call_details.method).rpartition("/")[2]
        lie = self._lies.get(method)
        if lie is None:
            return await continuation(handler_call_details)
        # On the wire a call with one answer is a stream with one answer, so this kind serves all.
        return grpc.stream_stream_rpc_method_handler(lie)


def saying(*answers: bytes) -> Lie:
    """Answer with these bytes, each as a message."""

    async def lie(_: Requests, __: Context) -> AsyncIterator[bytes]:
        for answer in answers:
            yield answer

    return lie


def saying_for_ever(answer: bytes) -> Lie:
    """Answer with these bytes again and again, as fast as they are taken."""

    async def lie(_: Requests, __: Context) -> AsyncIterator[bytes]:
        while True:
            yield answer

    return lie


def refusing(code: grpc.StatusCode, message: str, *, details: bytes = b"") -> Lie:
    """End the call with an error."""

    async def lie(_: Requests, context: Context) -> AsyncIterator[bytes]:
        trailers = (("grpc-status-details-bin", details),) if details else ()
        await context.abort(code, message, trailers)
        yield b""

    return lie


def saying_late(answer: bytes, *, seconds: float) -> Lie:
    """Answer with these bytes when the caller has long given up."""

    async def lie(_: Requests, __: Context) -> AsyncIterator[bytes]:
        await asyncio.sleep(seconds)
        yield answer

    return lie


async def silence(_: Requests, __: Context) -> AsyncIterator[bytes]:
    """Never answer."""
    await asyncio.get_running_loop().create_future()
    yield b""


async def deaf(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Take what the host sends and send nothing."""
    while await reader.read(4096):
        pass


async def gone(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    """Hang up at once."""


async def garbage(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send what is no HTTP/2, for as long as it is taken."""
    while True:
        writer.write(b"\xff\x00GARBAGE\r\n" * 400)
        await writer.drain()


async def dripping(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a valid beginning, one byte a second."""
    for octet in b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" * 100:
        writer.write(bytes([octet]))
        await writer.drain()
        await asyncio.sleep(1)


async def huge_frames(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Announce frames of 16 MiB and send their beginning, for as long as it is taken."""
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    writer.write(settings)
    while True:
        writer.write(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + b"\x00" * 65536)
        await writer.drain()
