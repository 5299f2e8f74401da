"""What the edge says: in its log, in its own answers, and of itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from cellmesh.guest.containers.ingress import NOT_LISTENING
from cellmesh.hypervisor.edge.admin import EdgeAway, EnvoyAdmin, Traffic
from cellmesh.hypervisor.edge.endpoint import Endpoint
from support.envoy import ALICE, BOB, READY_SECONDS, EdgeUnderTest
from support.http_client import connected, get, head, say

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "canary-5up3rs3cr3t"


def lines(edge: EdgeUnderTest) -> list[dict[str, Any]]:
    """Return the lines of the log; the last one may be half written yet, and is left out then."""
    return [json.loads(line) for line in edge.options.access_log.read_text().split("\n")[:-1]]


async def line_of(edge: EdgeUnderTest, request_id: str) -> dict[str, Any]:
    """Return the log's line about a request, once it is written."""
    async with asyncio.timeout(READY_SECONDS):
        while True:
            # After a rotation the file is there with its first line.
            with contextlib.suppress(FileNotFoundError):
                for line in lines(edge):
                    if line["request_id"] == request_id:
                        return line
            await asyncio.sleep(0.05)


async def test_the_log_says_who_asked_for_what_and_who_answered(edge: EdgeUnderTest) -> None:
    """Prove each field of a request that was answered."""
    await edge.lead(f"{ALICE}/dev", "alice-dev", 7)
    got = await get(edge.socket, "/dev/x?token=a", method="POST", body=b"12345", user=ALICE)
    line = await line_of(edge, got.headers["x-request-id"])
    expected = {
        "method": "POST",
        "host": "cell.test",
        "path": "/dev/x",
        "protocol": "HTTP/1.1",
        "status": 200,
        "flags": "-",
        "user": ALICE,
        "route": "dev",
        "vm_id": "vm-alice-dev",
        "container": "alice-dev",
        "epoch": "3",
        "generation": "7",
        "received_bytes": 5,
        "attempts": 1,
    }
    assert {name: line[name] for name in expected} == expected
    assert line["trace_id"] == got.header_of_request("traceparent")[0].split("-")[1]
    assert line["sent_bytes"] == len(got.body)
    assert line["duration_ms"] >= line["first_byte_ms"] >= 0


async def test_the_log_says_why_a_request_was_not_answered(edge: EdgeUnderTest) -> None:
    """Prove the line of a request that the authorizer refused, and of one that found no cell."""
    line = await line_of(edge, (await get(edge.socket, "/dev/x")).headers["x-request-id"])
    assert (line["path"], line["status"], line["flags"], line["user"]) == ("/dev/x", 401, "UAEX", None)
    line = await line_of(edge, (await get(edge.socket, "/dev/x", user=BOB)).headers["x-request-id"])
    assert (line["path"], line["status"], line["flags"], line["user"]) == ("/dev/x", 503, "NC", BOB)


async def test_no_credential_is_in_the_log(edge: EdgeUnderTest) -> None:
    """Prove that no secret of a request is written: not from headers, cookie, query, fragment or a refused request."""
    headers = [("Cookie", f"s={SECRET}"), ("X-Api-Key", SECRET), ("Proxy-Authorization", SECRET)]
    headers += [("User-Agent", SECRET), ("Referer", f"http://cell.test/?t={SECRET}")]
    for path in (f"/x?token={SECRET}", f"/dev/?{SECRET}", f"/_/notes/?{SECRET}"):
        await get(edge.socket, path, user=ALICE, headers=headers)
        await get(edge.socket, path, headers=headers)
    await say(edge.socket, f"GET /x?{SECRET} HTTP/1.1\r\nHost: cell.test\r\nx_{SECRET}: {SECRET}\r\n\r\n".encode())
    last = await get(edge.socket, "/last", user=ALICE)
    await line_of(edge, last.headers["x-request-id"])
    log = (edge.options.directory / "envoy.log").read_text() + edge.options.access_log.read_text()
    assert SECRET not in log
    assert ALICE in log


async def test_a_line_cannot_be_forged(edge: EdgeUnderTest) -> None:
    """Prove that quotes, escapes and other signs in a path stay within their field."""
    path = '/x","status":200,"user":"evil\\u0022'
    got = await get(edge.socket, path.replace('"', "%22").replace("\\", ""), user=ALICE)
    line = await line_of(edge, got.headers["x-request-id"])
    assert line["user"] == ALICE
    raw = await say(edge.socket, head("GET", '/y"z', user=ALICE))
    assert raw.startswith(b"HTTP/1.1 ")
    assert lines(edge)


async def test_what_a_program_and_a_browser_are_told(edge: EdgeUnderTest) -> None:
    """Prove that each failure has a reason and advice, as JSON for programs and as a page for browsers."""
    nobody = Endpoint(path=edge.options.directory / "nobody.sock", vm_id="vm", container="gone")
    await edge.discovery.served(f"{ALICE}/_gone", edge.discovery.put({f"{ALICE}/_gone": nobody}), timeout=READY_SECONDS)
    edge.toys["alice-live"].raw["/deaf"] = NOT_LISTENING
    cases = {
        "/dev/": (BOB, 503, "NO_CELL"),
        "/_/none/": (ALICE, 404, "NOT_FOUND"),
        "/_/gone/": (ALICE, 503, "CONTAINER_UNREACHABLE"),
        "/deaf": (ALICE, 503, "CONTAINER_NOT_LISTENING"),
        "/die": (ALICE, 502, "CONTAINER_HUNG_UP"),
        "/dev;x": (ALICE, 400, "BAD_REQUEST"),
    }
    for path, (user, status, reason) in cases.items():
        program = await get(edge.socket, path, user=user, headers=[("Accept", "application/json")])
        assert (program.status, program.json()["reason"], program.headers["content-type"]) == (
            status,
            reason,
            "application/json",
        )
        assert set(program.json()) <= {"code", "reason", "message", "request_id", "retry_after_seconds"}
        assert program.json()["request_id"] == program.headers["x-request-id"]
        assert program.json()["message"].count(". ") >= 1
        page = await get(edge.socket, path, user=user, headers=[("Accept", "text/html,application/xhtml+xml")])
        assert (page.status, page.headers["content-type"]) == (status, "text/html; charset=utf-8")
        assert reason.encode() in page.body
        assert page.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_an_apps_own_failures_are_its_own(edge: EdgeUnderTest) -> None:
    """Prove that what a container answers is passed on as it is, whatever its status."""
    got = await get(edge.socket, "/", user=ALICE, headers=[("Accept", "text/html")])
    assert got.headers["content-type"] == "application/json"
    assert "content-security-policy" not in got.headers


async def test_traffic_is_counted_by_route(edge: EdgeUnderTest) -> None:
    """Prove what is counted of requests, failures, bytes and what is open."""
    user = "0c0c0000-0000-4000-8000-000000000005"
    await edge.lead(f"{user}/live", "carols")
    assert f"{user}/live" not in await edge.admin.traffic()
    for _ in range(3):
        await get(edge.socket, "/", user=user)
    await get(edge.socket, "/upload", user=user, method="POST", body=b"x" * 10_000)
    async with connected(edge.socket) as (_, writer):
        writer.write(head("GET", "/slow", user=user))
        async with asyncio.timeout(READY_SECONDS):
            traffic = Traffic()
            # What was answered is counted a moment after its client has the answer.
            while traffic.active != 1 or traffic.requests < 4:
                await asyncio.sleep(0.02)
                traffic = (await edge.admin.traffic())[f"{user}/live"]
    assert (traffic.requests, traffic.server_errors) == (4, 0)
    assert traffic.sent_bytes > 10_000
    assert traffic.received_bytes > 1_000


async def test_the_state_of_updates_is_told(edge: EdgeUnderTest) -> None:
    """Prove that it is known whether Envoy is connected and how many clusters it has."""
    updates = await edge.admin.updates()
    assert updates.connected
    assert updates.clusters >= 4
    assert updates.rejected == 0


async def test_the_log_is_rotated_without_losing_a_line(edge: EdgeUnderTest) -> None:
    """Prove that lines go on in a new file, that old ones are kept, and that a short log is left alone."""
    log = edge.options.access_log
    first = await get(edge.socket, "/", user=ALICE)
    await line_of(edge, first.headers["x-request-id"])
    assert not await edge.admin.rotate(log, max_bytes=1 << 30)
    assert await edge.admin.rotate(log, max_bytes=10)
    second = await get(edge.socket, "/", user=ALICE)
    await line_of(edge, second.headers["x-request-id"])
    assert first.headers["x-request-id"] in log.with_name("access.log.1").read_text()
    for _ in range(3):
        last = await get(edge.socket, "/", user=ALICE)
        await line_of(edge, last.headers["x-request-id"])
        assert await edge.admin.rotate(log, max_bytes=10)
    last = await get(edge.socket, "/", user=ALICE)
    await line_of(edge, last.headers["x-request-id"])
    assert sorted(path.name for path in log.parent.glob("access.log*")) == [
        "access.log",
        "access.log.1",
        "access.log.2",
    ]


async def test_the_admin_socket_shows_counters_and_no_more(edge: EdgeUnderTest) -> None:
    """Prove that it is the owner's alone and can neither stop Envoy nor show what it holds."""
    assert edge.options.admin_socket.stat().st_mode & 0o777 == 0o600
    assert edge.options.probe_socket.stat().st_mode & 0o777 == 0o600
    for path in ("/config_dump", "/quitquitquit", "/drain_listeners", "/logging", "/memory", "/certs", "/heap_dump"):
        reply = await say(
            edge.options.admin_socket, f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        )
        assert reply.startswith(b"HTTP/1.1 403"), path
    assert await edge.admin.ready()


async def test_an_envoy_that_is_away_is_told_apart() -> None:
    """Prove that a missing Envoy is one kind of error, whatever is asked."""
    admin = EnvoyAdmin(Path("/nonexistent/admin.sock"))
    for asked in (admin.traffic(), admin.updates(), admin.ready()):
        with pytest.raises(EdgeAway):
            await asked
