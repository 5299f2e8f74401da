"""How much one client, one user and all of them may ask for (drills 22 and 39)."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from cellmesh.hypervisor.limits import RouteLimits
from support.envoy import ALICE, BOB, READY_SECONDS, WORKERS, EdgeUnderTest, furnish, running_edge, until, with_limits
from support.http_client import Answer, Http2, answer, connected, get, head

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = 100_000
LIMITS = RouteLimits()
ASKED = LIMITS.connections + LIMITS.pending_requests + 50


def chunked(size: int) -> bytes:
    """Return a body of `size` bytes in chunks."""
    blocks = [b"x" * min(4096, size - start) for start in range(0, size, 4096)]
    return b"".join(b"%x\r\n%s\r\n" % (len(block), block) for block in blocks) + b"0\r\n\r\n"


async def test_a_body_may_be_as_long_as_the_limit_and_no_longer() -> None:
    """Prove the limit to the byte: declared and chunked, in HTTP/1.1 and HTTP/2; nothing declared reaches the app."""
    async with running_edge(with_limits(body_bytes=BODY)) as edge:
        await furnish(edge)
        toy = edge.toys["alice-live"]
        for size, status in ((BODY, 200), (BODY + 1, 413)):
            before = toy.heads
            declared = await get(edge.socket, "/upload", method="POST", user=ALICE, body=b"x" * size)
            assert declared.status == status, size
            assert toy.heads - before == (1 if status == 200 else 0)
            async with connected(edge.socket) as (reader, writer):
                writer.write(head("POST", "/upload", user=ALICE, headers=[("Transfer-Encoding", "chunked")]))
                writer.write(chunked(size))
                assert (await answer(reader)).status == status, size
            for declare in (True, False):
                assert await upload_by_http2(edge, size, declare=declare) == status, (size, declare)
        assert {seen.body_bytes for seen in toy.seen if "/upload" in seen.line} == {BODY}


async def upload_by_http2(edge: EdgeUnderTest, size: int, *, declare: bool) -> int:
    """Upload on an HTTP/2 connection; return the status."""
    async with connected(edge.socket) as (reader, writer):
        client = Http2(reader, writer)
        length = {"content-length": str(size)} if declare else {}
        stream = client.ask("/upload", user=ALICE, method="POST", more=length, end=False)
        client.flush()
        while size and stream not in client.ended:
            window = min(size, client.connection.local_flow_control_window(stream), 16_384)
            if window:
                client.connection.send_data(stream, b"x" * window, end_stream=window == size)
                size -= window
                client.flush()
            elif not await client.hear():
                break
        (headers,) = await client.answers([stream])
        return int(headers.get(":status", "0"))


async def test_one_user_cannot_ask_too_often() -> None:
    """Prove that each user has a bucket of their own, that there is room for more users than 20, and what is said."""
    async with running_edge(with_limits(requests_burst=30, requests_per_second=10)) as edge:
        await furnish(edge)
        others = [f"{number:08x}-0000-4000-8000-000000000003" for number in range(40)]
        answers = [await get(edge.socket, "/", user=ALICE) for _ in range(30)]
        for other in others:
            assert (await get(edge.socket, "/", user=other)).status == 503
        refused = [got for got in await at_once(edge, 200) if got.status == 429]
        assert all(got.status == 200 for got in answers)
        assert len(refused) > 10
        assert (refused[0].json()["reason"], refused[0].headers["retry-after"]) == ("RATE_LIMITED", "1")
        assert (await get(edge.socket, "/", user=BOB)).status == 200


async def at_once(edge: EdgeUnderTest, count: int) -> list[Answer]:
    """Ask so often on one connection, without a wait for any answer; one at a time a busy machine is no burst."""
    async with connected(edge.socket) as (reader, writer):
        writer.write(head("GET", "/", user=ALICE) * count)
        return [await answer(reader) for _ in range(count)]


async def test_one_container_takes_so_many_connections_and_no_more() -> None:
    """Prove that WebSockets of one container end at its limit, with a word, and that other containers are not hurt."""
    upgrade = (("Connection", "upgrade"), ("Upgrade", "websocket"))
    async with running_edge() as edge, asyncio.TaskGroup() as tasks:
        await furnish(edge)
        done = asyncio.Event()
        statuses: list[int] = []

        async def hold() -> None:
            async with connected(edge.socket) as (reader, writer):
                writer.write(head("GET", "/ws", user=ALICE, headers=upgrade))
                statuses.append((await answer(reader)).status)
                await done.wait()

        for _ in range(ASKED):
            tasks.create_task(hold())
        # As many may wait as may be connected.
        await until(lambda: len(statuses) >= ASKED - LIMITS.pending_requests)
        assert statuses.count(503) >= ASKED - LIMITS.connections - LIMITS.pending_requests - WORKERS
        assert edge.toys["alice-live"].open_connections <= LIMITS.connections + WORKERS
        assert (await get(edge.socket, "/dev/", user=ALICE)).status == 200
        assert (await get(edge.socket, "/", user=BOB)).status == 200
        done.set()


async def test_slow_headers_are_not_waited_for() -> None:
    """Prove that who sends a byte now and then is cut off, and that the others are served meanwhile."""
    limits = with_limits(header_timeout=timedelta(seconds=3), stream_idle_timeout=timedelta(seconds=3))
    async with running_edge(limits) as edge:
        await furnish(edge)
        async with connected(edge.socket) as (slow, slow_writer), connected(edge.socket) as (still, still_writer):
            slow_writer.write(b"GET / HTTP/1.1\r\nHost: cell.test\r\n")
            still_writer.write(head("POST", "/upload", user=ALICE, headers=[("Content-Length", "10")]) + b"12345")

            async def drip() -> None:
                while True:
                    slow_writer.write(b"x")
                    await asyncio.sleep(0.1)

            dripping = asyncio.create_task(drip())
            try:
                assert (await get(edge.socket, "/", user=ALICE)).status == 200
                assert (await answer(slow)).status == 408
                stopped = await answer(still)
            finally:
                dripping.cancel()
            assert (stopped.status, stopped.json()["reason"]) == (408, "TOO_SLOW")


async def test_a_stream_ends_with_its_lifetime() -> None:
    """Prove that a WebSocket is closed once its right to be there has to be asked for again."""
    async with running_edge(with_limits(stream_lifetime=timedelta(seconds=3))) as edge:
        await furnish(edge)
        async with connected(edge.socket) as (reader, writer):
            writer.write(head("GET", "/ws", user=ALICE, headers=(("Connection", "upgrade"), ("Upgrade", "websocket"))))
            assert (await answer(reader)).status == 101
            async with asyncio.timeout(READY_SECONDS):
                assert await reader.read() == b""


async def reset_rapidly(edge: EdgeUnderTest) -> bool:
    """Ask and take back two thousand times on one connection; return whether it was cut off."""
    async with connected(edge.socket) as (reader, writer):
        client = Http2(reader, writer)
        try:
            for _ in range(20):
                for _ in range(100):
                    client.connection.reset_stream(client.ask("/slow", user=ALICE))
                client.flush()
                await writer.drain()
            client.connection.ping(b"finished")
            client.flush()
            while client.goodbye is None and not client.pongs:
                if not await client.hear():
                    return True
        except ConnectionError:
            return True
        return client.goodbye is not None


async def test_who_resets_streams_all_the_time_is_cut_off(edge: EdgeUnderTest) -> None:
    """Prove that a rapid reset ends the connection, and that others are served after it (CVE-2023-44487)."""
    assert await reset_rapidly(edge)
    assert (await get(edge.socket, "/", user=ALICE)).status == 200


async def test_without_the_guard_a_rapid_reset_goes_on() -> None:
    """Prove that the test before can fail: without the limits on resets the connection lives on."""

    def spoil(config: dict) -> dict:
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        manager["http2_protocol_options"] |= {"stream_reset_burst": 1_000_000, "stream_reset_rate": 1_000_000}
        layer = config["layered_runtime"]["layers"][0]["static_layer"]
        layer["overload.premature_reset_total_stream_count"] = 1_000_000
        return config

    async with running_edge(spoil=spoil) as spoilt:
        await furnish(spoilt)
        assert not await reset_rapidly(spoilt)


async def test_one_connection_has_so_many_streams_and_no_more(edge: EdgeUnderTest) -> None:
    """Prove that a stream above the limit of an HTTP/2 connection is refused, and those before it are not."""
    async with connected(edge.socket) as (reader, writer):
        client = Http2(reader, writer)
        client.connection.remote_settings.max_concurrent_streams = 1000
        waiting = [client.ask("/slow", user=ALICE) for _ in range(101)]
        client.flush()
        while not client.reset and client.goodbye is None:
            assert await client.hear()
        assert set(client.reset) <= {waiting[-1]}
    edge.toys["alice-live"].release = asyncio.Semaphore(0)


async def test_all_together_have_so_many_connections() -> None:
    """Prove that connections above the limit of all are closed, and that admin and probe still answer."""
    async with running_edge(with_limits(connections=20)) as edge:
        await furnish(edge)
        async with asyncio.TaskGroup() as tasks:
            done = asyncio.Event()
            refused: list[bool] = []

            async def idle() -> None:
                async with connected(edge.socket) as (reader, _):
                    reading = asyncio.ensure_future(reader.read(1))
                    finished, _ = await asyncio.wait({reading, waiter}, return_when=asyncio.FIRST_COMPLETED)
                    if reading in finished:
                        refused.append(True)
                    reading.cancel()

            waiter = tasks.create_task(done.wait())
            for _ in range(60):
                tasks.create_task(idle())
            await until(lambda: len(refused) >= 40)
            assert await edge.admin.ready()
            await edge.lead(f"{ALICE}/live", "alice-new")
            done.set()
        await until_served(edge)


async def test_an_edge_without_memory_takes_nobody_in_and_goes_on_serving_its_owner() -> None:
    """Prove that Envoy gives up connections before it has more memory than it may, and that admin and probe answer."""
    async with running_edge(with_limits(heap_bytes=8 << 20)) as edge:
        stopped = r"^overload\.envoy\.overload_actions\.stop_accepting_connections\.active$"
        async with asyncio.timeout(READY_SECONDS):
            while not any((await edge.admin.stats(stopped)).values()):  # noqa: ASYNC110  # of Envoy
                await asyncio.sleep(0.05)
        await furnish(edge)
        async with connected(edge.socket) as (reader, writer):
            writer.write(head("GET", "/", user=ALICE))
            await edge.lead(f"{ALICE}/live", "alice-new")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await reader.read(1)


async def until_served(edge: EdgeUnderTest) -> None:
    """Wait until a request is answered."""
    async with asyncio.timeout(READY_SECONDS):
        while True:
            try:
                if (await get(edge.socket, "/", user=ALICE)).status == 200:
                    return
            except (OSError, EOFError):
                await asyncio.sleep(0.05)
