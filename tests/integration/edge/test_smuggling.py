"""Requests that two servers may read in two ways: the app gets those that were authorized, each once, and no other."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import h2.exceptions
import pytest

from cellmesh.hypervisor.edge.endpoint import Endpoint
from support.envoy import ALICE, READY_SECONDS, EdgeUnderTest, running_edge
from support.http_client import Address, Http2, connected
from support.smuggling import Frames, cases, frames
from support.strict_app import Request, StrictApp

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED = 20261130
CASES = 1_000
AT_ONCE = 200
QUIET_SECONDS = 2.0
"""After so long without a byte nothing more is waited for: what lacks its end is never answered."""
FRAMES_SECONDS = 10.0
"""The same of HTTP/2, where nearly all have an end."""
LEAST = 20
"""How many answers there are at least: on a busy machine some come too late to be waited for."""


@asynccontextmanager
async def edge_before() -> AsyncIterator[tuple[EdgeUnderTest, StrictApp]]:
    """Yield an edge with a strict app as Alice's."""
    async with running_edge() as edge, StrictApp(path=edge.options.directory / "app.sock").serving() as app:
        name = f"{ALICE}/live"
        version = edge.discovery.put({name: Endpoint(path=app.path, vm_id="vm")})
        await edge.discovery.served(name, version, timeout=READY_SECONDS)
        yield edge, app


async def send_all(address: Address, sent: list[bytes]) -> int:
    """Send each on a connection of its own; return how many answers of an app there were."""
    turns, answers = asyncio.Semaphore(AT_ONCE), 0

    async def send(data: bytes) -> None:
        nonlocal answers
        async with turns, connected(address) as (reader, writer):
            writer.write(data)
            got = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                while more := await asyncio.wait_for(reader.read(1 << 16), QUIET_SECONDS):
                    got += more
            answers += got.count(b"HTTP/1.1 200 OK")

    await asyncio.gather(*map(send, sent))
    return answers


async def send_frames(address: Address, sent: list[Frames]) -> int:
    """Send each on an HTTP/2 connection of its own; return how many answers of an app there were."""
    turns, answers = asyncio.Semaphore(AT_ONCE), 0

    async def send(request: Frames) -> None:
        nonlocal answers
        async with turns, connected(address) as (reader, writer):
            client = Http2(reader, writer)
            stream = client.connection.get_next_available_stream_id()
            client.connection.send_headers(stream, request.headers, end_stream=not request.body)
            if request.body:
                client.connection.send_data(stream, request.body[:4])
                client.connection.send_data(stream, request.body[4:], end_stream=True)
            client.flush()
            with contextlib.suppress(TimeoutError, h2.exceptions.ProtocolError):
                async with asyncio.timeout(FRAMES_SECONDS):
                    while not {stream} & ({*client.reset} | client.finished) and await client.hear():
                        pass
            answers += client.ended.get(stream, {}).get(":status") == "200"

    await asyncio.gather(*map(send, sent))
    return answers


def authorized(edge: EdgeUnderTest) -> set[Request]:
    """Return what the authorizer was asked about and has allowed."""
    asked = [check.attributes.request.http for check in edge.authorizer.seen]
    return {
        Request(
            path=each.path,
            user=each.headers["authorization"].removeprefix("Bearer "),
            request_id=each.headers["x-request-id"],
        )
        for each in asked
        if "authorization" in each.headers
    }


def smuggled(edge: EdgeUnderTest, app: StrictApp) -> list[object]:
    """Return what the app got that was not authorized as it is, or twice, or was no strict request."""
    allowed, counted = authorized(edge), Counter(app.seen)
    return [*app.faults, *(each for each, count in counted.items() if each not in allowed or count > 1)]


def written_out(request: Frames) -> bytes:
    """Return a request of HTTP/2 as HTTP/1.1, with all it says left as it is."""
    told = dict(request.headers)
    length = "" if {"content-length", "transfer-encoding"} & set(told) else f"content-length: {len(request.body)}\r\n"
    lines = [f"{name}: {value}" for name, value in request.headers if not name.startswith(":")]
    head = "\r\n".join((f"{told[':method']} {told[':path']} HTTP/1.1", f"host: {told[':authority']}", *lines))
    return f"{head}\r\n{length}\r\n".encode("latin-1") + request.body


async def test_no_request_is_hidden_in_another() -> None:
    """Prove over many strange requests of HTTP/1.1 that the app reads as many as were authorized, and the same."""
    async with edge_before() as (edge, app):
        answers = await send_all(edge.socket, list(cases(SEED, CASES)))
        assert smuggled(edge, app) == []
    # Enough of them are requests for this to say something; those of which no more than a part came have no answer.
    assert LEAST <= answers <= len(app.seen)


async def test_no_frame_becomes_another_request() -> None:
    """Prove the same of HTTP/2, where a header may hold whatever ends one in HTTP/1.1."""
    async with edge_before() as (edge, app):
        answers = await send_frames(edge.socket, list(frames(SEED, CASES)))
        assert smuggled(edge, app) == []
    assert LEAST <= answers <= len(app.seen)


@pytest.mark.parametrize(
    "sent", [[*cases(SEED, CASES)], [*map(written_out, frames(SEED, CASES))]], ids=["HTTP/1.1", "HTTP/2"]
)
async def test_a_gateway_that_passes_on_what_it_gets_is_caught(sent: list[bytes], tmp_path: Path) -> None:
    """Prove that both can fail: without the edge the app reads hidden requests, and much that is no strict request."""
    async with StrictApp(path=tmp_path / "app.sock").serving() as app:
        await send_all(app.path, sent)
    assert any(each.path.startswith("/s/") for each in app.seen)
    assert len(app.faults) > CASES / 20
