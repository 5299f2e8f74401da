"""The activator's process answers whatever comes over the edge's socket, from what the hypervisor says of a route."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from cellmesh.api.hypervisor.v1 import route_pb2, route_service_pb2, vm_pb2
from cellmesh.hypervisor.activator.activations import WAITING_PER_USER
from cellmesh.mesh.identity import EDGE
from support.activator import Activator, activator, client, hypervisor, run_directory
from support.route_service import USER, Routes

FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
BROWSER = {"accept": FIREFOX, "sec-fetch-mode": "navigate"}
REQUEST_ID = "11111111-2222-4333-8444-555555555555"
_PATIENCE = 60.0


def answer(reason: str, *, retry_after: int | None = None, state: str = "WAITING") -> Routes:
    """Return a hypervisor that says this of every route."""
    route = route_pb2.Route(
        state=f"ROUTE_STATE_{state}",
        target=route_pb2.RouteTarget(container_name="sandbox-live"),
        reason=reason,
        message=f"It is {reason}. Do something.",
    )
    return Routes(
        answer=route_service_pb2.ActivateRouteResponse(
            route=route,
            vm_state=vm_pb2.VM_STATE_STARTING,
            retry_after=None if retry_after is None else Duration(seconds=retry_after),
        )
    )


@pytest.fixture(scope="module")
def run_dir() -> Iterator[Path]:
    """Give a run directory."""
    with run_directory() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(run_dir: Path) -> AsyncIterator[Activator]:
    """Give one activator to all tests that only ask it."""
    async with activator(run_dir) as made:
        yield made


def _user(number: int) -> dict[str, str]:
    """Return the header of a user no other test has asked for within a blink."""
    return {"x-cellmesh-user": f"00000000-0000-4000-8000-{number:012d}"}


@pytest.mark.asyncio(loop_scope="module")
async def test_program_is_told_what_to_wait_for(running: Activator, run_dir: Path) -> None:
    """503 with when to come back, why, and under which ids; the hypervisor was asked by the edge, in this trace."""
    routes = answer("VM_STARTING", retry_after=3)
    headers = {"x-cellmesh-user": USER, "x-forwarded-prefix": "/dev", "x-request-id": REQUEST_ID}
    async with (
        hypervisor(run_dir, routes),
        client(running.socket) as session,
        session.get("http://cell/api?x=1", headers=headers) as response,
    ):
        assert response.status == 503
        assert response.headers["retry-after"] == "3"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-cellmesh-reason"] == "VM_STARTING"
        assert await response.json() == {
            "code": "UNAVAILABLE",
            "reason": "VM_STARTING",
            "message": "It is VM_STARTING. Do something.",
            "trace_id": REQUEST_ID.replace("-", ""),
            "request_id": REQUEST_ID,
            "retry_after_seconds": 3,
        }
    assert routes.asked == [(USER, "/dev/")]
    assert routes.callers == {EDGE}
    assert [trace.split("-")[1] for trace in routes.traceparents] == [REQUEST_ID.replace("-", "")]


@pytest.mark.asyncio(loop_scope="module")
async def test_person_is_shown_what_to_wait_for(running: Activator, run_dir: Path) -> None:
    """A browser gets the same as a page, which no cache keeps and whose policy lets nothing else in."""
    async with (
        hypervisor(run_dir, answer("CONTAINER_STARTING", retry_after=1)),
        client(running.socket) as session,
        session.get("http://cell/", headers={**_user(2), **BROWSER}) as response,
    ):
        text = await response.text()
        assert (response.status, response.content_type) == (503, "text/html")
        assert response.headers["retry-after"] == "1"
        assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")
        assert response.headers["x-content-type-options"] == "nosniff"
    assert "<h1>The app is starting</h1>" in text
    assert "It is CONTAINER_STARTING. Do something." in text
    assert "sandbox-live" in text


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("headers", [{}, BROWSER], ids=["program", "browser"])
async def test_failure_says_what_to_do_and_not_when_to_come_back(
    running: Activator, run_dir: Path, headers: dict[str, str]
) -> None:
    """What does not end by itself is 503 without Retry-After, with the hypervisor's words."""
    async with (
        hypervisor(run_dir, answer("CONTAINER_FAILED")),
        client(running.socket) as session,
        session.get("http://cell/", headers={**_user(3), **headers}) as response,
    ):
        text = await response.text()
        assert response.status == 503
        assert "retry-after" not in response.headers
        assert "It is CONTAINER_FAILED. Do something." in text
        assert "retry_after_seconds" not in text or headers


@pytest.mark.asyncio(loop_scope="module")
async def test_race_with_a_switch_ends_at_once(running: Activator, run_dir: Path) -> None:
    """A route that serves by now is asked for again at once: by a program in a second, by a page without a pause."""
    routes = answer("", state="SERVING")
    async with hypervisor(run_dir, routes), client(running.socket) as session:
        async with session.get("http://cell/", headers=_user(4)) as response:
            assert (response.status, response.headers["retry-after"]) == (503, "1")
            assert (await response.json())["reason"] == "ROUTE_SERVING"
        async with session.get("http://cell/", headers={**_user(4), **BROWSER}) as response:
            assert 'data-pause="0"' in await response.text()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("OPTIONS", {}),
        ("POST", {}),
        ("PUT", {}),
        ("PATCH", {}),
        ("DELETE", {}),
        ("PROPFIND", {}),
        ("GET", {"accept": "text/event-stream"}),
        ("GET", {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-key": "x", "accept": FIREFOX}),
        ("GET", {"accept": FIREFOX, "sec-fetch-mode": "cors"}),
        ("POST", {"accept": FIREFOX}),
    ],
)
async def test_everything_else_gets_a_programs_answer(
    running: Activator, run_dir: Path, method: str, headers: dict[str, str]
) -> None:
    """No method, stream or upgrade is answered with a page, or not at all."""
    async with (
        hypervisor(run_dir, answer("VM_STARTING", retry_after=1)),
        client(running.socket) as session,
        session.request(method, "http://cell/any/path", headers={**_user(5), **headers}) as response,
    ):
        assert (response.status, response.content_type) == (503, "application/json")
        assert (await response.json())["reason"] == "VM_STARTING"


@pytest.mark.asyncio(loop_scope="module")
async def test_head_gets_the_headers_alone(running: Activator, run_dir: Path) -> None:
    """HEAD has what GET would say in its headers, and the connection goes on."""
    async with hypervisor(run_dir, answer("VM_STARTING", retry_after=7)), client(running.socket) as session:
        async with session.head("http://cell/", headers={**_user(6), "accept": FIREFOX}) as response:
            assert (response.status, response.headers["retry-after"]) == (503, "7")
            assert await response.read() == b""
        async with session.get("http://cell/", headers=_user(6)) as response:
            assert (await response.json())["retry_after_seconds"] == 7


@pytest.mark.asyncio(loop_scope="module")
async def test_refused_websocket_is_a_plain_answer(running: Activator, run_dir: Path) -> None:
    """A client that speaks WebSocket learns the status, and the connection ends: what follows is no request."""
    async with hypervisor(run_dir, answer("VM_STARTING", retry_after=1)), client(running.socket) as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect("http://cell/ws", headers=_user(7))
    assert refused.value.status == 503
    assert refused.value.headers is not None
    assert refused.value.headers["x-cellmesh-reason"] == "VM_STARTING"
    assert refused.value.headers["connection"] == "close"


@pytest.mark.asyncio(loop_scope="module")
async def test_hypervisor_that_is_away_is_told_and_asked_again(running: Activator, run_dir: Path) -> None:
    """Without a hypervisor: 503 and why. With one again: its word, from the same process."""
    async with client(running.socket) as session:
        async with session.get("http://cell/", headers=_user(8)) as response:
            assert (response.status, response.headers["retry-after"]) == (503, "2")
            assert (await response.json())["reason"] == "HYPERVISOR_UNAVAILABLE"
        async with session.get("http://cell/", headers={**_user(8), **BROWSER}) as response:
            assert "Cells cannot be started right now" in await response.text()
        async with hypervisor(run_dir, answer("VM_STARTING", retry_after=1)):
            ends = time.monotonic() + _PATIENCE
            while True:
                async with session.get("http://cell/", headers=_user(8)) as response:
                    if (await response.json())["reason"] == "VM_STARTING":
                        break
                assert time.monotonic() < ends
                await asyncio.sleep(0.05)


@pytest.mark.asyncio(loop_scope="module")
async def test_hypervisor_that_hangs_is_not_waited_for(running: Activator, run_dir: Path) -> None:
    """The contract's deadline ends the call, and what waited for it gets an answer."""
    routes = answer("VM_STARTING", retry_after=1)
    routes.behave = asyncio.Event().wait  # type: ignore[assignment]  # what it returns never comes
    async with (
        hypervisor(run_dir, routes),
        client(running.socket) as session,
        asyncio.timeout(_PATIENCE),
        session.get("http://cell/", headers=_user(9)) as response,
    ):
        assert response.status == 503
        assert (await response.json())["reason"] == "HYPERVISOR_UNAVAILABLE"


@pytest.mark.asyncio(loop_scope="module")
async def test_crowd_is_one_question(running: Activator, run_dir: Path) -> None:
    """All requests for a route that are there at once are one call; beyond what one user may, they are refused."""
    go = asyncio.Event()
    routes = answer("VM_STARTING", retry_after=1)
    routes.behave = go.wait  # type: ignore[assignment]  # what it returns is not looked at
    async with hypervisor(run_dir, routes), client(running.socket) as session, asyncio.timeout(_PATIENCE):

        async def ask() -> int:
            async with session.get("http://cell/", headers=_user(10)) as response:
                return response.status

        asking = [asyncio.create_task(ask()) for _ in range(100)]
        await routes.entered.wait()
        for refused in itertools.islice(asyncio.as_completed(asking), 100 - WAITING_PER_USER):
            assert await refused == 429
        go.set()
        statuses = await asyncio.gather(*asking)
    assert len(routes.asked) == 1
    assert statuses.count(503) == WAITING_PER_USER


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_body_without_end_is_neither_read_nor_waited_for(
    running: Activator, run_dir: Path, encoding: str
) -> None:
    """The answer comes while the body does, says that the connection ends, and nothing of the body is kept."""
    async with hypervisor(run_dir, answer("VM_STARTING", retry_after=1)), asyncio.timeout(_PATIENCE):
        reader, writer = await asyncio.open_unix_connection(str(running.socket))
        before = running.rss
        writer.write(
            f"POST /upload HTTP/1.1\r\nhost: cell\r\nx-cellmesh-user: {USER}\r\n"
            f"content-encoding: {encoding}\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        )
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        writer.write(chunk)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close" in head.lower()
        body = await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head.lower())[0]))
        assert b"VM_STARTING" in body
        sent = 0
        try:
            while True:
                writer.write(chunk)
                await writer.drain()
                sent += len(chunk)
        except ConnectionError:
            pass
        writer.close()
        assert sent > 0
        assert running.rss - before < 32 << 20


@pytest.mark.asyncio(loop_scope="module")
async def test_requests_one_behind_the_other_are_answered_in_turn(running: Activator, run_dir: Path) -> None:
    """Requests without a body share a connection, as the edge has it."""
    async with hypervisor(run_dir, answer("VM_STARTING", retry_after=1)), asyncio.timeout(_PATIENCE):
        reader, writer = await asyncio.open_unix_connection(str(running.socket))
        request = f"GET / HTTP/1.1\r\nhost: cell\r\nx-cellmesh-user: {USER}\r\n\r\n".encode()
        writer.write(request * 5)
        for _ in range(5):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head.lower())[0]))
        writer.close()


CANARY = "canary-5e55a"


@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_of_a_request_is_repeated(running: Activator, run_dir: Path) -> None:
    """Neither an answer nor the log has a cookie, a query, a path or a header, not even of what is no request."""
    headers = {"cookie": f"session={CANARY}", "authorization": f"Bearer {CANARY}", "x-other": CANARY}
    answers: list[str] = []
    async with hypervisor(run_dir, answer("VM_STARTING", retry_after=1)), client(running.socket) as session:
        for more in ({**_user(12), **BROWSER}, _user(12), {"x-cellmesh-user": CANARY}, {}):
            url = f"http://cell/{CANARY}?token={CANARY}"
            async with session.get(url, headers={**headers, **more}) as response:
                answers.append(f"{response.headers}{await response.text()}")
    for line in (f"{CANARY}\r\n\r\n", f"GET / HTTP/1.1\r\ncookie {CANARY}\r\n\r\n", f"GET /{CANARY} HTTP/9.9\r\n\r\n"):
        reader, writer = await asyncio.open_unix_connection(str(running.socket))
        writer.write(line.encode())
        async with asyncio.timeout(_PATIENCE):
            raw = (await reader.read()).decode()
        writer.close()
        assert re.match(r"HTTP/1\.[01] 400 ", raw)
        assert '"reason": "BAD_REQUEST"' in raw
        answers.append(raw)
    assert len(answers) == 7
    assert not any(CANARY in text for text in answers)
    log = running.log.read_text()
    assert "activator.unreadable" in log
    assert CANARY not in log


@pytest.mark.asyncio(loop_scope="module")
async def test_path_of_health_belongs_to_the_app(running: Activator, run_dir: Path) -> None:
    """A user's request for /healthz is about the app; only what did not come through the edge is about us."""
    async with hypervisor(run_dir, answer("VM_STARTING", retry_after=1)), client(running.socket) as session:
        async with session.get("http://cell/healthz", headers=_user(13)) as response:
            assert response.status == 503
        async with session.get("http://cell/", headers={}) as response:
            assert (response.status, (await response.json())["code"]) == (400, "INVALID_ARGUMENT")
        async with session.get("http://cell/healthz") as response:
            assert response.status == 200


@pytest.mark.asyncio
async def test_wait_beyond_the_budget_is_called_long() -> None:
    """Programs and people are told when a wait is longer than usual, and what to do then."""
    with run_directory() as run_dir:
        routes = answer("VM_STARTING", retry_after=1)
        async with (
            activator(run_dir, CELLMESH_WAIT_BUDGET="0.01") as made,
            hypervisor(run_dir, routes),
            client(made.socket) as session,
            asyncio.timeout(_PATIENCE),
        ):
            while True:
                async with session.get("http://cell/", headers=_user(1)) as response:
                    if "longer than usual" in (await response.json())["message"]:
                        break
                await asyncio.sleep(0.01)
            async with session.get("http://cell/", headers={**_user(1), **BROWSER}) as response:
                assert '<p id="late" role="status">' in await response.text()
