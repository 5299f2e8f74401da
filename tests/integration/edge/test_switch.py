"""What a switch does to requests, streams and sockets that are under way, and what outages do."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cellmesh.hypervisor.edge.discovery import EdgeRefused, EdgeUnreachable
from cellmesh.hypervisor.edge.endpoint import Endpoint
from support.envoy import ALICE, BOB, READY_SECONDS, EdgeUnderTest, furnish, running_edge, until
from support.http_client import Connection, answer, connected, get, head

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE = f"{ALICE}/live"
UPGRADE = (("Connection", "upgrade"), ("Upgrade", "websocket"))
IDLE_SECONDS = 0.05


async def open_socket(edge: EdgeUnderTest, connection: Connection) -> str:
    """Open a WebSocket of Alice's; return which container has it."""
    reader, writer = connection
    writer.write(head("GET", "/ws", user=ALICE, headers=UPGRADE))
    upgraded = await answer(reader)
    assert upgraded.status == 101
    return upgraded.headers["x-toy"]


async def echoes(connection: Connection, data: bytes) -> bool:
    """Return whether what is sent on a WebSocket comes back."""
    reader, writer = connection
    writer.write(data)
    async with asyncio.timeout(READY_SECONDS):
        return await reader.readexactly(len(data)) == data


async def test_what_is_served_is_served_by_every_worker(edge: EdgeUnderTest) -> None:
    """Prove that no request after `served` meets the container of before, on new and on kept connections."""
    async with connected(edge.socket) as first, connected(edge.socket) as second, connected(edge.socket) as third:
        for turn in range(150):
            name = f"alice-{turn % 2}"
            await edge.lead(LIVE, name, turn)
            for _, writer in (first, second, third):
                writer.write(head("GET", "/", user=ALICE))
            for reader, _ in (first, second, third):
                assert (await answer(reader)).json()["toy"] == name


async def test_requests_under_way_end_where_they_began(edge: EdgeUnderTest) -> None:
    """Prove that a request that waits for its answer gets it from the container it went to."""
    old = await edge.lead(LIVE, "alice-old")
    async with connected(edge.socket) as (reader, writer):
        writer.write(head("GET", "/slow", user=ALICE))
        await until(lambda: any("/slow" in seen.line for seen in old.seen))
        await edge.lead(LIVE, "alice-new")
        assert (await get(edge.socket, "/", user=ALICE)).json()["toy"] == "alice-new"
        old.release.release()
        assert (await answer(reader)).json()["toy"] == "alice-old"


async def test_an_open_websocket_stays_with_its_container(edge: EdgeUnderTest) -> None:
    """Prove that a switch, and an outage of hypervisor and authorizer, leave open WebSockets alone."""
    await edge.lead(LIVE, "alice-old")
    async with connected(edge.socket) as before, connected(edge.socket) as after:
        assert await open_socket(edge, before) == "alice-old"
        await edge.lead(LIVE, "alice-new")
        assert await open_socket(edge, after) == "alice-new"
        await edge.stop_hypervisor()
        for connection in (before, after):
            assert await echoes(connection, b"still here")
        await edge.start_hypervisor()
        await until(lambda: edge.discovery.connected == 1)
        assert await echoes(before, b"and here")


async def test_no_request_fails_while_routes_switch(edge: EdgeUnderTest) -> None:
    """Prove under load that every request is answered, by a container that was routed at some moment of it."""
    await edge.lead(LIVE, "alice-0")
    routed = {"alice-0": [(0.0, math.inf)], "alice-1": []}
    strays: list[str] = []
    asked: list[tuple[str, float, float]] = []
    done = asyncio.Event()

    async def ask() -> None:
        async with connected(edge.socket) as (reader, writer):
            while not done.is_set():
                start = time.monotonic()
                writer.write(head("GET", "/", user=ALICE))
                got = await answer(reader)
                if got.status == 200:
                    asked.append((got.json()["toy"], start, time.monotonic()))
                else:
                    strays.append(f"{got.status} {got.body[:200]!r}")

    await edge.toy("alice-1")
    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(ask())
        for turn in range(1, 101):
            name, before = f"alice-{turn % 2}", f"alice-{(turn + 1) % 2}"
            start = time.monotonic()
            await edge.lead(LIVE, name, turn)
            # The one before may answer until the other is served, and no longer.
            routed[before][-1] = (routed[before][-1][0], time.monotonic())
            routed[name].append((start, math.inf))
        done.set()
    strays += [
        f"{toy} at {start}"
        for toy, start, end in asked
        if not any(first <= end and start <= last for first, last in routed[toy])
    ]
    assert strays == []
    assert len(asked) > 100


async def test_a_request_that_finds_its_container_gone_goes_to_the_next() -> None:
    """Prove that a request of which nothing was sent is sent to the endpoint that takes over."""

    def persistent(config: dict) -> dict:
        # Within the usual few tries, half a second, a machine that is busy may not have told of the next one.
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        manager["route_config"]["virtual_hosts"][0]["retry_policy"]["num_retries"] = 10_000
        return config

    async with running_edge(spoil=persistent) as edge:
        gone = Endpoint(path=edge.options.directory / "gone.sock", vm_id="vm", container="gone", generation=1)
        await edge.discovery.served(LIVE, edge.discovery.put({LIVE: gone}), timeout=READY_SECONDS)
        asking = asyncio.create_task(get(edge.socket, "/", user=ALICE, method="POST", body=b"x" * 40_000))
        await until(lambda: bool(edge.authorizer.seen))
        await edge.lead(LIVE, "alice-next")
        got = await asking
    assert (got.status, got.json()["toy"], got.json()["body_bytes"]) == (200, "alice-next", 40_000)


async def test_what_was_sent_is_never_sent_again(edge: EdgeUnderTest) -> None:
    """Prove that a container that hangs up after it was asked is not asked a second time."""
    toy = await edge.lead(LIVE, "alice-live")
    before = toy.heads
    got = await get(edge.socket, "/die", user=ALICE)
    assert (got.status, got.json()["reason"]) == (502, "CONTAINER_HUNG_UP")
    assert toy.heads == before + 1


async def test_a_retry_of_what_was_sent_is_caught() -> None:
    """Prove that the test before can fail: with retries after any reset the container is asked again."""

    def spoil(config: dict) -> dict:
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        manager["route_config"]["virtual_hosts"][0]["retry_policy"]["retry_on"] += ",reset"
        return config

    async with running_edge(spoil=spoil) as spoilt:
        toy = await spoilt.lead(LIVE, "alice-live")
        await get(spoilt.socket, "/die", user=ALICE)
        assert toy.heads > 1


@asynccontextmanager
async def impatient_app(path: Path) -> AsyncIterator[Counter[str]]:
    """Run an app that ends connections on which nothing comes for a moment; count what it is asked."""
    asked: Counter[str] = Counter()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                line = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), IDLE_SECONDS)).split(b"\r\n")[0]
                asked[line.decode()] += 1
                await reader.readexactly(3 if line.startswith(b"POST") else 0)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except (TimeoutError, OSError, EOFError, asyncio.CancelledError):
            writer.close()

    async with await asyncio.start_unix_server(accept, path):
        yield asked


async def test_an_app_that_ends_idle_connections_is_asked_nothing_twice(edge: EdgeUnderTest) -> None:
    """Prove of requests that meet the end of a connection: none is sent twice, and those that fail say why."""
    path = edge.options.directory / "impatient.sock"
    told: Counter[tuple[int, str]] = Counter()

    async def ask(number: int) -> None:
        async with connected(edge.socket) as (reader, writer):
            for turn in range(40):
                method, body = (("POST", b"abc"), ("GET", b""))[turn % 2]
                length = [("Content-Length", "3")] if body else []
                writer.write(head(method, f"/{number}-{turn}", user=ALICE, headers=length) + body)
                got = await answer(reader)
                told[got.status, "" if got.status == 200 else got.json()["reason"]] += 1
                # So that it often asks as the connection ends.
                await asyncio.sleep(IDLE_SECONDS + (number + turn) % 7 / 1000 - 0.003)

    async with impatient_app(path) as asked:
        version = edge.discovery.put({LIVE: Endpoint(path=path, vm_id="vm", container="impatient", generation=3)})
        await edge.discovery.served(LIVE, version, timeout=READY_SECONDS)
        await asyncio.gather(*(ask(number) for number in range(10)))
    assert set(asked.values()) == {1}
    assert set(told) <= {(200, ""), (502, "CONTAINER_HUNG_UP")}
    assert told[200, ""] > 0


async def test_what_envoy_refuses_is_told_and_changes_nothing(edge: EdgeUnderTest) -> None:
    """Prove the way of a refusal: its reason comes back, the last good endpoint serves, the next good one is taken."""
    await edge.lead(LIVE, "alice-live")
    too_long = Endpoint(path=Path("/" + "x" * 200), vm_id="vm", container="bad", generation=9)
    version = edge.discovery.put({LIVE: too_long})
    with pytest.raises(EdgeRefused, match="exceeds"):
        await edge.discovery.served(LIVE, version, timeout=READY_SECONDS)
    with pytest.raises(EdgeRefused):
        await edge.discovery.served(LIVE, edge.discovery.put({LIVE: too_long}), timeout=READY_SECONDS)
    assert (await get(edge.socket, "/", user=ALICE)).json()["toy"] == "alice-live"
    await edge.lead(LIVE, "alice-new")
    assert (await get(edge.socket, "/", user=ALICE)).json()["toy"] == "alice-new"


async def test_one_bad_endpoint_keeps_no_other_back(edge: EdgeUnderTest) -> None:
    """Prove that of many changes told at once only the one that is refused is not served."""
    toy = await edge.toy("alice-live")
    good = {f"{number:08x}-0000-4000-8000-000000000003/live": Endpoint(path=toy.path) for number in range(20)}
    bad = {"0bad0000-0000-4000-8000-000000000004/live": Endpoint(path=Path("/" + "x" * 200))}
    names = [*list(good)[:7], *bad, *list(good)[7:]]
    version = edge.discovery.put({name: {**good, **bad}[name] for name in names})
    for name in good:
        await edge.discovery.served(name, version, timeout=READY_SECONDS)
    with pytest.raises(EdgeRefused):
        await edge.discovery.served(next(iter(bad)), version, timeout=READY_SECONDS)
    await gone(edge, names)


async def gone(edge: EdgeUnderTest, names: list[str]) -> None:
    """Remove clusters, and wait until they are."""
    version = edge.discovery.put(dict.fromkeys(names))
    for name in names:
        await edge.discovery.served(name, version, timeout=READY_SECONDS)


async def test_a_cluster_that_is_removed_is_no_longer_served(edge: EdgeUnderTest) -> None:
    """Prove that who had a cell gets the word that there is none, and the cell again once it is back."""
    name = f"{BOB}/_gone"
    await edge.lead(name, "bob-gone")
    assert (await get(edge.socket, "/_/gone/", user=BOB)).json()["toy"] == "bob-gone"
    await gone(edge, [name])
    assert (await get(edge.socket, "/_/gone/", user=BOB)).status == 404
    await edge.lead(name, "bob-gone")
    assert (await get(edge.socket, "/_/gone/", user=BOB)).json()["toy"] == "bob-gone"


async def test_without_a_hypervisor_all_that_was_served_is_served(edge: EdgeUnderTest) -> None:
    """Prove that Envoy keeps what it has, takes what changed meanwhile, and is not told again what it holds."""
    await edge.lead(LIVE, "alice-live")
    await edge.stop_hypervisor()
    await until(lambda: edge.discovery.connected == 0)
    assert (await get(edge.socket, "/", user=ALICE)).json()["toy"] == "alice-live"
    toy = await edge.toy("alice-new")
    version = edge.discovery.put({LIVE: Endpoint(path=toy.path, vm_id="vm", container="new", generation=2)})
    with pytest.raises(EdgeUnreachable, match="No edge is connected"):
        await edge.discovery.served(LIVE, version, timeout=READY_SECONDS)
    await edge.start_hypervisor()
    await until(lambda: edge.discovery.connected == 1)
    await edge.discovery.served(LIVE, version, timeout=READY_SECONDS)
    (stream,) = edge.discovery._streams
    assert stream._endpoints._count == 1, "all but one were held already"
    assert (await get(edge.socket, "/", user=ALICE)).json()["toy"] == "alice-new"
    await edge.discovery.served(f"{BOB}/live", version, timeout=READY_SECONDS)


async def test_an_envoy_that_does_not_answer_is_told_apart(edge: EdgeUnderTest) -> None:
    """Prove that a hung Envoy is a time limit's error, and that it serves the switch once it goes on."""
    await edge.lead(LIVE, "alice-live")
    assert edge.process is not None
    edge.process.send_signal(signal.SIGSTOP)
    try:
        toy = await edge.toy("alice-new")
        version = edge.discovery.put({LIVE: Endpoint(path=toy.path, vm_id="vm", container="new", generation=77)})
        with pytest.raises(EdgeUnreachable, match="did not say"):
            await edge.discovery.served(LIVE, version, timeout=0.3)
    finally:
        edge.process.send_signal(signal.SIGCONT)
    await edge.discovery.served(LIVE, version, timeout=READY_SECONDS)


async def test_an_envoy_that_starts_again_serves_everything() -> None:
    """Prove that a killed Envoy is told everything when it is back."""
    async with running_edge() as fresh:
        await furnish(fresh)
        fresh.kill_envoy()
        await until(lambda: fresh.discovery.connected == 0)
        await fresh.start_envoy()
        await fresh.lead(LIVE, "alice-new")
        for path, toy in (("/", "alice-new"), ("/dev/", "alice-dev"), ("/_/notes/", "alice-notes")):
            assert (await get(fresh.socket, path, user=ALICE)).json()["toy"] == toy
