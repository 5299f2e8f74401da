"""WebSockets of a session that ends, or becomes another user's, while they are open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta

import pytest

from cellmesh.envoy.auth.v3 import external_auth_pb2
from support.envoy import ALICE, BOB, READY_SECONDS, EdgeUnderTest, furnish, running_edge, until, with_limits
from support.http_client import Answer, Connection, answer, connected, get, head
from support.toys import Verdict, allowed, by_token, denied

pytestmark = pytest.mark.asyncio(loop_scope="module")

COOKIE = ("Cookie", "session=one")
UPGRADE = (("Connection", "upgrade"), ("Upgrade", "websocket"))


class Session:
    """One browser's session: whose it is, if anybody's."""

    def __init__(self, user: str) -> None:
        self.user = user

    def decide(self, _: external_auth_pb2.CheckRequest) -> Verdict:
        """Answer as the authorizer."""
        return allowed(self.user) if self.user else denied(401, "sign in")


@contextmanager
def session(edge: EdgeUnderTest) -> Iterator[Session]:
    """Give a session of Alice's."""
    it = Session(ALICE)
    edge.authorizer.answer = it.decide
    try:
        yield it
    finally:
        edge.authorizer.answer = by_token


@asynccontextmanager
async def websocket(edge: EdgeUnderTest) -> AsyncIterator[tuple[Answer, Connection]]:
    """Open a WebSocket of the session."""
    async with connected(edge.socket) as (reader, writer):
        writer.write(head("GET", "/ws", headers=[COOKIE, *UPGRADE]))
        yield await answer(reader), (reader, writer)


async def echoed(line: Connection, text: bytes) -> bool:
    """Tell whether what is said over a WebSocket comes back."""
    reader, writer = line
    writer.write(text)
    async with asyncio.timeout(READY_SECONDS):
        return await reader.readexactly(len(text)) == text


async def test_a_session_that_ends_opens_nothing_more_and_keeps_what_it_has(edge: EdgeUnderTest) -> None:
    """Prove that from the end of a session on requests and WebSockets are refused, and open WebSockets stay."""
    with session(edge) as one:
        async with websocket(edge) as (opened, line):
            assert opened.status == 101
            one.user = ""
            assert (await get(edge.socket, "/", headers=[COOKIE])).status == 401
            async with websocket(edge) as (refused, _):
                assert refused.status == 401
            assert await echoed(line, b"still here")


async def test_a_session_of_another_user_keeps_open_websockets_with_the_first(edge: EdgeUnderTest) -> None:
    """Prove that each WebSocket stays with the cell of the user who opened it, side by side with a new one."""
    with session(edge) as one:
        async with websocket(edge) as (first, line_of_alice):
            one.user = BOB
            async with websocket(edge) as (second, line_of_bob):
                assert (first.headers["x-toy"], second.headers["x-toy"]) == ("alice-live", "bob-live")
                before = {name: toy.open_connections for name, toy in edge.toys.items()}
                for text in (b"alice's", b"alice's as well"):
                    assert await echoed(line_of_alice, text)
                    assert await echoed(line_of_bob, b"bob's")
                assert before == {name: toy.open_connections for name, toy in edge.toys.items()}
            assert (await get(edge.socket, "/", headers=[COOKIE])).json()["toy"] == "bob-live"
            assert await echoed(line_of_alice, b"alice's still")


async def test_the_word_that_counts_is_the_last_before_the_request_goes_on(edge: EdgeUnderTest) -> None:
    """Prove that an end of the session counts while the authorizer is asked, and no more while the app is."""
    with session(edge) as one:
        edge.authorizer.delay = asyncio.Event()
        asked = len(edge.authorizer.seen)
        async with connected(edge.socket) as (reader, writer):
            writer.write(head("GET", "/ws", headers=[COOKIE, *UPGRADE]))
            await until(lambda: len(edge.authorizer.seen) > asked)
            one.user = ""
            edge.authorizer.delay.set()
            assert (await answer(reader)).status == 401
        edge.authorizer.delay, one.user = None, ALICE
        toy = edge.toys["alice-live"]
        async with connected(edge.socket) as (reader, writer):
            heads = toy.heads
            writer.write(head("GET", "/late-ws", headers=[COOKIE, *UPGRADE]))
            await until(lambda: toy.heads > heads)
            one.user = ""
            toy.release.release()
            assert (await answer(reader)).status == 101
            assert await echoed((reader, writer), b"opened before")


async def test_a_websocket_of_an_ended_session_ends_with_its_lifetime() -> None:
    """Prove that its lifetime ends a WebSocket though it is talked over, and that the session opens no other."""
    async with running_edge(with_limits(stream_lifetime=timedelta(seconds=3))) as edge:
        await furnish(edge)
        with session(edge) as one:
            async with websocket(edge) as (opened, (reader, writer)):
                assert opened.status == 101
                one.user = ""
                with contextlib.suppress(ConnectionError):
                    async with asyncio.timeout(READY_SECONDS):
                        while not reader.at_eof():
                            writer.write(b"x")
                            await reader.read(1)
            async with websocket(edge) as (refused, _):
                assert refused.status == 401
