"""What becomes of a request when the authorizer is away, slow, or wrong (drill 40), and that none passes without it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from google.rpc import code_pb2, status_pb2

from cellmesh.envoy.auth.v3 import external_auth_pb2
from support.envoy import ALICE, BOB, EdgeUnderTest, furnish, running_edge
from support.http_client import answer, connected, get, head
from support.toys import Verdict, allowed, by_token, denied

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVERY_PATH = ("/", "/dev", "/dev/x", "/_/notes/", "/_/unknown/", "/_/", "/dev;/x", "/.cellmesh/x", "/favicon.ico")


def without_status(_: external_auth_pb2.CheckRequest) -> Verdict:
    """Allow in words, with no status to say so."""
    verdict = allowed(ALICE)
    verdict.ClearField("status")
    return verdict


def of_unknown_status(_: external_auth_pb2.CheckRequest) -> Verdict:
    """Answer with a status that does not exist."""
    return external_auth_pb2.CheckResponse(status=status_pb2.Status(code=4711))


WRONG = {
    "deny without words": lambda _: external_auth_pb2.CheckResponse(
        status=status_pb2.Status(code=code_pb2.PERMISSION_DENIED)
    ),
    "deny with 100 KB": lambda _: denied(403, "x" * 100_000),
    "unknown status": of_unknown_status,
    "header with a line break": lambda _: allowed(ALICE, cookie="a\r\nx-evil: 1"),
    "header with a NUL": lambda _: allowed(ALICE, cookie="a\0b"),
    "name with a space": lambda _: allowed(ALICE, **{"x evil": "1"}),
    "header nobody allowed": lambda _: allowed(ALICE, x_evil="1"),
    "host": lambda _: allowed(ALICE, host="evil.test"),
    "path": lambda _: allowed(ALICE, **{":path": "/dev/"}),
    "route": lambda _: allowed(ALICE, x_cellmesh_route=f"{BOB}/live"),
    "deny with a broken header": lambda _: denied(403, "no", x_evil="a\r\nset-cookie: b=c"),
    "deny with no status that exists": lambda _: denied(99),
    "message that is none": lambda _: b"\xff\xff\xff\xff",
    "400 KB": lambda _: allowed(ALICE, cookie="x" * 400_000),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_answer_never_lets_a_request_pass(edge: EdgeUnderTest, wrong: str) -> None:
    """Prove of each answer that is not a plain yes: refused, nothing of it reaches an app, and Envoy goes on."""
    before = sum(toy.heads for toy in edge.toys.values())
    edge.authorizer.answer = WRONG[wrong]
    try:
        got = await get(edge.socket, "/", user=ALICE)
    finally:
        edge.authorizer.answer = by_token
    # A denial has whatever status the authorizer gives it.
    assert got.status in {401, 403, 500, 503, 99}, got
    assert len(got.body) <= 64 << 10
    assert "set-cookie" not in got.headers
    assert sum(toy.heads for toy in edge.toys.values()) == before
    assert (await get(edge.socket, "/", user=ALICE)).status == 200


async def test_a_yes_without_a_user_leads_nowhere(edge: EdgeUnderTest) -> None:
    """Prove that an authorizer that allows without naming anybody sends the request to nobody's cell."""
    edge.authorizer.answer = lambda _: external_auth_pb2.CheckResponse(status=status_pb2.Status(code=code_pb2.OK))
    try:
        got = await get(edge.socket, "/", headers=[("x-cellmesh-user", ALICE)])
    finally:
        edge.authorizer.answer = by_token
    assert (got.status, got.json()["reason"]) == (503, "NO_CELL")


@pytest.mark.parametrize("path", EVERY_PATH)
async def test_every_path_asks(edge: EdgeUnderTest, path: str) -> None:
    """Prove that nobody gets anything at any path, nor any hint whether there is something."""
    asked = len(edge.authorizer.seen)
    for upgrade in ((), (("Connection", "upgrade"), ("Upgrade", "websocket"))):
        got = await get(edge.socket, path, headers=upgrade)
        assert (got.status, got.body) == (401, b"who are you?")
    assert len(edge.authorizer.seen) == asked + 2


async def test_the_authorizers_own_words_are_passed_on(edge: EdgeUnderTest) -> None:
    """Prove that a sign-in redirect comes with its cookie, and a denial with its body and kind."""
    edge.authorizer.answer = lambda _: denied(302, "", location="/", set_cookie="s=1; HttpOnly")
    try:
        got = await get(edge.socket, "/.cellmesh/sign-in?user=x")
    finally:
        edge.authorizer.answer = by_token
    assert (got.status, got.headers["location"], got.headers["set-cookie"]) == (302, "/", "s=1; HttpOnly")


async def test_it_sees_what_it_needs_and_no_more(edge: EdgeUnderTest) -> None:
    """Prove which headers it is shown, that it is told the kind of route, and that it never gets a body."""
    headers = [("Cookie", "a=b"), ("Accept", "text/html"), ("X-Secret", "1"), ("Sec-Fetch-Site", "none")]
    await get(edge.socket, "/dev/x?q=1", method="POST", body=b"secret", user=ALICE, headers=headers)
    seen = edge.authorizer.seen[-1].attributes
    assert set(seen.request.http.headers) == {"cookie", "accept", "sec-fetch-site", "authorization", "x-request-id"}
    assert (seen.request.http.path, seen.request.http.host) == ("/dev/x?q=1", "cell.test")
    assert dict(seen.context_extensions) == {"cellmesh-route": "dev"}
    assert b"secret" not in seen.SerializeToString()


async def test_it_may_take_its_cookie_away(edge: EdgeUnderTest) -> None:
    """Prove that what the authorizer makes of the cookie is what the app gets."""
    edge.authorizer.answer = lambda _: allowed(ALICE, cookie="app=1")
    try:
        got = await get(edge.socket, "/", headers=[("Cookie", "session=secret; app=1")])
    finally:
        edge.authorizer.answer = by_token
    assert got.header_of_request("cookie") == ["app=1"]


async def test_without_an_authorizer_nothing_new_passes_and_what_is_open_stays() -> None:
    """Prove that its end refuses requests with a word, leaves open WebSockets, and is over when it is back."""
    async with running_edge() as edge:
        await furnish(edge)
        async with connected(edge.socket) as (reader, writer):
            writer.write(head("GET", "/ws", user=ALICE, headers=(("Connection", "upgrade"), ("Upgrade", "websocket"))))
            assert (await answer(reader)).status == 101
            away = edge.authorizer.path.with_suffix(".away")
            edge.authorizer.path.rename(away)
            await edge.authorizer.hang_up()
            got = await get(edge.socket, "/", user=ALICE)
            assert (got.status, got.json()["reason"], got.headers["retry-after"]) == (
                503,
                "AUTHORIZER_UNREACHABLE",
                "2",
            )
            page = await get(edge.socket, "/", user=ALICE, headers=[("Accept", "text/html,*/*")])
            assert page.headers["content-type"].startswith("text/html")
            assert b"authorizer" in page.body
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"


async def test_a_slow_authorizer_is_not_waited_for() -> None:
    """Prove that a request is refused after the time that was allowed for asking."""
    async with running_edge(lambda options: replace(options, authorizer_timeout=timedelta(milliseconds=100))) as edge:
        await furnish(edge)
        edge.authorizer.delay = asyncio.Event()
        got = await get(edge.socket, "/", user=ALICE)
        assert (got.status, got.json()["reason"]) == (503, "AUTHORIZER_UNREACHABLE")
        edge.authorizer.delay.set()


async def test_failure_mode_allow_would_let_a_request_pass() -> None:
    """Prove that the table can fail: with the authorizer's failure allowed, a wrong answer passes."""

    def spoil(config: dict) -> dict:
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        for each in manager["http_filters"]:
            if each["name"] == "envoy.filters.http.ext_authz":
                each["typed_config"]["failure_mode_allow"] = True
        return config

    async with running_edge(spoil=spoil) as open_edge:
        await furnish(open_edge)
        open_edge.authorizer.answer = WRONG["message that is none"]
        got = await get(open_edge.socket, "/", user=ALICE)
    assert (got.status, got.json()["reason"]) == (503, "NO_CELL")
