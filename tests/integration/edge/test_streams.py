"""What streams: events, WebSockets, long transfers both ways; nothing is held back and nothing is piled up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from support.envoy import ALICE, READY_SECONDS, EdgeUnderTest, until
from support.http_client import Http2, answer, connected, head

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRANSFER = 256 << 20


def memory(edge: EdgeUnderTest) -> int:
    """Return the bytes of memory Envoy has."""
    assert edge.process is not None
    for line in Path(f"/proc/{edge.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError


async def test_each_event_comes_when_it_is_sent(edge: EdgeUnderTest) -> None:
    """Prove that an event stream is not buffered: each event is there before the next one is sent."""
    toy = edge.toys["alice-live"]
    async with connected(edge.socket) as (reader, writer):
        writer.write(head("GET", "/events", user=ALICE, headers=[("Accept", "text/event-stream")]))
        first = await reader.readuntil(b"\r\n\r\n")
        assert b"text/event-stream" in first
        for number in range(1, 4):
            toy.release.release()
            async with asyncio.timeout(READY_SECONDS):
                assert await reader.readuntil(b"\n\n\r\n") == b"9\r\ndata: %d\n\n\r\n" % number


async def test_events_come_by_http2_as_well(edge: EdgeUnderTest) -> None:
    """Prove the same of HTTP/2."""
    toy = edge.toys["alice-dev"]
    async with connected(edge.socket) as (reader, writer):
        client = Http2(reader, writer)
        stream = client.ask("/dev/events", user=ALICE)
        client.flush()
        for number in range(1, 4):
            toy.release.release()
            while client.bodies.get(stream, b"").count(b"\n\n") < number:
                assert await client.hear()


async def test_an_upload_is_passed_on_as_it_comes(edge: EdgeUnderTest) -> None:
    """Prove that the container gets the head of an upload before its end was sent."""
    toy = edge.toys["alice-live"]
    before = toy.heads
    async with connected(edge.socket) as (reader, writer):
        writer.write(head("POST", "/upload", user=ALICE, headers=[("Content-Length", "10")]) + b"12345")
        await until(lambda: toy.heads == before + 1)
        writer.write(b"67890")
        assert (await answer(reader)).json()["body_bytes"] == 10


async def test_long_transfers_do_not_pile_up(edge: EdgeUnderTest) -> None:
    """Prove that a quarter of a GiB passes each way while Envoy's memory stays as it was, readers being slow."""
    before = memory(edge)
    most = before
    async with connected(edge.socket) as (reader, writer):
        writer.write(head("GET", f"/download/{TRANSFER}", user=ALICE))
        await reader.readuntil(b"\r\n\r\n")
        left = TRANSFER
        while left:
            data = await reader.read(1 << 20)
            assert data
            left -= len(data)
            most = max(most, memory(edge)) if left % 64 < 2 else most
        most = max(most, memory(edge))
        writer.write(head("POST", "/upload", user=ALICE, headers=[("Content-Length", str(TRANSFER))]))
        block = bytes(1 << 20)
        for _ in range(TRANSFER >> 20):
            writer.write(block)
            await writer.drain()
        most = max(most, memory(edge))
        assert (await answer(reader)).json()["body_bytes"] == TRANSFER
    assert most - before < 32 << 20


async def test_who_does_not_read_does_not_cost_memory(edge: EdgeUnderTest) -> None:
    """Prove that downloads nobody reads stop at the buffers of their connections."""
    before = memory(edge)
    async with asyncio.TaskGroup() as tasks:
        done = asyncio.Event()

        async def never_read() -> None:
            async with connected(edge.socket) as (reader, writer):
                reader._transport.pause_reading()  # type: ignore[attr-defined]
                writer.write(head("GET", f"/download/{TRANSFER}", user=ALICE))
                await done.wait()

        for _ in range(40):
            tasks.create_task(never_read())
        toy = edge.toys["alice-live"]
        seen = sum("/download" in each.line for each in toy.seen)
        await until(lambda: sum("/download" in each.line for each in toy.seen) >= seen + 40)
        assert memory(edge) - before < 40 * (1 << 20)
        done.set()


async def test_a_websocket_carries_bytes_both_ways(edge: EdgeUnderTest) -> None:
    """Prove that a WebSocket of live, and one of dev, echo what is sent, through the prefix."""
    for path, toy in (("/ws", "alice-live"), ("/dev/ws", "alice-dev"), ("/_/notes/ws", "alice-notes")):
        async with connected(edge.socket) as (reader, writer):
            writer.write(head("GET", path, user=ALICE, headers=(("Connection", "upgrade"), ("Upgrade", "websocket"))))
            assert (await answer(reader)).headers["x-toy"] == toy
            for size in (1, 100, 100_000):
                writer.write(b"x" * size)
                async with asyncio.timeout(READY_SECONDS):
                    assert await reader.readexactly(size) == b"x" * size


async def test_a_client_that_leaves_takes_its_stream_along(edge: EdgeUnderTest) -> None:
    """Prove that the container's connection is closed when a WebSocket's client goes."""
    toy = edge.toys["alice-dev"]
    async with connected(edge.socket) as (reader, writer):
        writer.write(head("GET", "/dev/ws", user=ALICE, headers=(("Connection", "upgrade"), ("Upgrade", "websocket"))))
        assert (await answer(reader)).status == 101
        opened = toy.open_connections
    await until(lambda: toy.open_connections < opened)
