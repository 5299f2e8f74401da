"""Many at once: nobody gets another's answer, and who only sits there costs little (drills 23 and 39)."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from cellmesh.hypervisor.edge.options import EdgeOptions
from support import tables
from support.envoy import ALICE, BOB, EdgeUnderTest, furnish, running_edge, with_limits
from support.http_client import Http2, answer, connected, get, head

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUESTS = 10_000
CONNECTIONS = 20
IDLE = 10_000
SOCKETS = 100
AT_ONCE = 20
UPGRADE = (("Connection", "upgrade"), ("Upgrade", "websocket"))
EXPECTED = {(ALICE, "/"): "alice-live", (ALICE, "/dev/"): "alice-dev", (BOB, "/"): "bob-live"}


async def test_no_answer_crosses(edge: EdgeUnderTest) -> None:
    """Prove over ten thousand pipelined requests of mixed users that each gets its own answer, in its own order."""

    async def mixed(number: int) -> int:
        kinds = list(EXPECTED)
        async with connected(edge.socket) as (reader, writer):
            for start in range(0, REQUESTS // CONNECTIONS, 50):
                asked = [kinds[(number + start + step) % len(kinds)] for step in range(50)]
                writer.write(
                    b"".join(
                        head("GET", f"{path}{number}-{start + step}", user=user)
                        for step, (user, path) in enumerate(asked)
                    )
                )
                for step, (user, path) in enumerate(asked):
                    got = (await answer(reader)).json()
                    assert (got["toy"], got["line"]) == (EXPECTED[user, path], f"GET /{number}-{start + step} HTTP/1.1")
        return REQUESTS // CONNECTIONS

    done = await asyncio.gather(*(mixed(number) for number in range(CONNECTIONS)))
    assert sum(done) == REQUESTS


async def test_users_share_an_http2_connection_without_crossing(edge: EdgeUnderTest) -> None:
    """Prove the same of streams of one HTTP/2 connection."""
    kinds = list(EXPECTED)
    async with connected(edge.socket) as (reader, writer):
        client = Http2(reader, writer)
        for _ in range(10):
            streams = {}
            for step in range(60):
                user, path = kinds[step % len(kinds)]
                streams[client.ask(path, user=user)] = EXPECTED[user, path]
            client.flush()
            await client.answers(list(streams))
            for stream, toy in streams.items():
                assert f'"toy": "{toy}"'.encode() in client.bodies[stream]


@pytest.mark.parametrize(
    "more",
    [
        {"x-a": "b\r\nx-cellmesh-user: evil"},
        {"x-a": "b\nx-evil: 1"},
        {"x-a": "b\0c"},
        {"x-a\r\nx-evil": "1"},
        {"x a": "1"},
        {"X-Upper": "1"},
        {"transfer-encoding": "chunked"},
        {"connection": "upgrade", "upgrade": "websocket"},
        {"te": "gzip"},
        {"host": "evil.test"},
        {":path": "/dev/"},
        {":evil": "1"},
        {"content-length": "5"},
    ],
    ids=repr,
)
async def test_http2_carries_no_header_that_http1_could_not(edge: EdgeUnderTest, more: dict[str, str]) -> None:
    """Prove that what would be another header or another request in HTTP/1.1 is refused, or one plain request."""
    toy = edge.toys["alice-live"]
    async with connected(edge.socket) as (reader, writer):
        client = Http2(reader, writer)
        before = len(toy.seen)
        stream = client.ask("/injected", user=ALICE, more=more)
        client.flush()
        (got,) = await client.answers([stream])
    for seen in toy.seen[before:]:
        names = {name for name, _ in seen.headers}
        assert not names & {"x-evil", "upgrade", "transfer-encoding", "te"}
        assert seen.all("x-cellmesh-user") == [ALICE]
        assert seen.all("host") == ["cell.test"]
    assert len(toy.seen) - before == (1 if got.get(":status") == "200" else 0)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process, and what it starts, open as many files as they ever may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
async def test_a_crowd_that_only_sits_there_costs_little() -> None:
    """Prove that ten thousand idle connections, WebSockets among them, leave others served and memory bounded.

    What another user waits meanwhile is written to build/edge_crowd.txt.
    """
    async with running_edge(_roomy) as edge:
        await furnish(edge)
        assert edge.process is not None
        status = Path(f"/proc/{edge.process.pid}/status")

        def memory() -> int:
            return int(status.read_text().split("VmRSS:")[1].split()[0]) << 10

        before, alone = memory(), await _waited(edge)
        async with asyncio.TaskGroup() as tasks:
            done, opened, turns = asyncio.Event(), asyncio.Semaphore(0), asyncio.Semaphore(AT_ONCE)

            async def sit(*, upgraded: bool) -> None:
                async with AsyncExitStack() as stack:
                    async with turns:
                        reader, writer = await stack.enter_async_context(connected(edge.socket))
                        if upgraded:
                            writer.write(head("GET", "/ws", user=ALICE, headers=UPGRADE))
                            assert (await answer(reader)).status == 101
                    opened.release()
                    await done.wait()

            for number in range(IDLE):
                tasks.create_task(sit(upgraded=number < SOCKETS))
            for _ in range(IDLE):
                await opened.acquire()
            crowded = await _waited(edge)
            assert (await get(edge.socket, "/dev/", user=ALICE)).status == 200
            grown = memory() - before
            done.set()
    tables.write(
        "edge_crowd",
        ("idle connections", "p50", "p95", "memory of Envoy"),
        [
            (count, f"{1000 * times[49]:.1f} ms", f"{1000 * times[94]:.1f} ms", f"{rss >> 20} MiB")
            for count, times, rss in ((0, alone, before), (IDLE, crowded, before + grown))
        ],
    )
    assert grown < IDLE * (32 << 10)


def _roomy(options: EdgeOptions) -> EdgeOptions:
    """Have room for all, and patience with an authorizer that is in the same process as they are."""
    return replace(with_limits(connections=IDLE + 1_000)(options), authorizer_timeout=timedelta(seconds=30))


async def _waited(edge: EdgeUnderTest) -> list[float]:
    """Return what Bob waits for each of a hundred requests, in seconds, the shortest first."""
    waited: list[float] = []
    for _ in range(100):
        begun = time.monotonic()
        assert (await get(edge.socket, "/", user=BOB)).status == 200
        waited.append(time.monotonic() - begun)
    return sorted(waited)
