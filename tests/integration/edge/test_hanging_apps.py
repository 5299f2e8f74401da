"""Apps that hang, or hang up, in each phase of HTTP: what their visitors get, and that nobody else notices."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import pytest

from cellmesh.envoy.auth.v3 import external_auth_pb2
from cellmesh.hypervisor.edge.endpoint import Endpoint
from cellmesh.hypervisor.edge.options import Json
from support.envoy import ALICE, BOB, READY_SECONDS, EdgeUnderTest, Spoil, furnish, running_edge, with_limits
from support.hanging_apps import IDLE_SECONDS, PHASES, TOO_SLOW, UNREAD, HangingApp, Phase, Told
from support.http_client import Http2, answer, connected
from support.latency import SLOWER, times_slower
from support.toys import Verdict, by_token

pytestmark = pytest.mark.asyncio(loop_scope="module")

Visit = Callable[[EdgeUnderTest, str, Phase], Awaitable[Told]]
VISITORS = 2
"""Of each app."""
SAMPLES = 50
OTHERS = ((BOB, "/"), (ALICE, "/dev/"))
PATIENT = with_limits(
    stream_idle_timeout=timedelta(seconds=IDLE_SECONDS), stream_lifetime=timedelta(seconds=2 * IDLE_SECONDS)
)


@asynccontextmanager
async def hanging(spoil: Spoil = lambda config: config) -> AsyncIterator[EdgeUnderTest]:
    """Yield an edge with an app for each phase, as sidecars of Alice's."""
    async with running_edge(PATIENT, spoil) as edge, AsyncExitStack() as stack:
        await furnish(edge)
        endpoints = {}
        for number, phase in enumerate(PHASES.values()):
            app = HangingApp(path=edge.options.directory / f"h{number}.sock", phase=phase)
            await stack.enter_async_context(app.serving())
            endpoints[f"{ALICE}/_h{number}"] = Endpoint(path=app.path, vm_id="vm", container=f"h{number}")
        version = edge.discovery.put(endpoints)
        for cluster in endpoints:
            await edge.discovery.served(cluster, version, timeout=READY_SECONDS)
        yield edge


async def visit(edge: EdgeUnderTest, path: str, phase: Phase) -> Told:
    """Ask by HTTP/1.1 and return what came of it."""
    async with connected(edge.socket) as (reader, writer):
        writer.write(phase.request(path))
        said = b"HTTP/1.1 100 Continue"
        while said.startswith(b"HTTP/1.1 100 "):
            said = await reader.readuntil(b"\r\n\r\n")
        status, whole = int(said.split(b" ")[1]), True
        try:
            body = await _body(reader, said.lower())
        except (EOFError, ConnectionError):
            body, whole = b"", False
        return Told(status=status, whole=whole, reason=json.loads(body)["reason"] if status >= 400 else "")


async def _body(reader: asyncio.StreamReader, said: bytes) -> bytes:
    """Return the body of an answer, or all until the connection ends; EOFError if it breaks off."""
    if b"\r\ntransfer-encoding: chunked\r\n" in said:
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return body
    if b"\r\ncontent-length: " in said:
        return await reader.readexactly(int(said.partition(b"\r\ncontent-length: ")[2].split(b"\r\n")[0]))
    return await reader.read()


async def visit_by_http2(edge: EdgeUnderTest, path: str, phase: Phase) -> Told:
    """Ask by HTTP/2 and return what came of it."""
    async with connected(edge.socket) as (reader, writer):
        client = Http2(reader, writer)
        length = {"content-length": "10"} if phase.method == "POST" else {}
        stream = client.ask(path, user=ALICE, method=phase.method, more=length, end=not length)
        if length:
            client.connection.send_data(stream, bytes(10), end_stream=True)
        client.flush()
        while not {stream} & ({*client.reset} | client.finished):
            assert await client.hear()
        status = int(client.ended[stream][":status"])
        whole = stream not in client.reset or client.reset[stream] == 0
        reason = json.loads(client.bodies[stream])["reason"] if status >= 400 else ""
        return Told(status=status, whole=whole, reason=reason)


def due(phase: Phase, visitor: Visit) -> Told:
    """Return what a visitor is to be told: an upload by HTTP/2 is short here, and taken in before it is answered."""
    return TOO_SLOW if phase.told == UNREAD and visitor is visit_by_http2 else phase.told


async def unmet(edge: EdgeUnderTest, visitor: Visit, names: Sequence[str]) -> dict[str, set[Told]]:
    """Visit each app several times at once; return what was told to those who were not told what they are to be."""
    wrong = await _wrong(edge, visitor, names)
    for _ in range(2):
        # On a busy machine so many at once may have waited too long for the authorizer, which is in this process.
        wrong = await _wrong(edge, visitor, [*wrong])
    return wrong


async def _wrong(edge: EdgeUnderTest, visitor: Visit, names: Sequence[str]) -> dict[str, set[Told]]:
    asked = [name for name in names for _ in range(VISITORS)]
    told = await asyncio.gather(*(visitor(edge, path_of(name), PHASES[name]) for name in asked))
    wrong: dict[str, set[Told]] = {}
    for name, got in zip(asked, told, strict=True):
        if got != due(PHASES[name], visitor):
            wrong.setdefault(name, set()).add(got)
    return wrong


def path_of(name: str) -> str:
    """Return where the app of a phase is."""
    return f"/_/h{list(PHASES).index(name)}/"


@pytest.mark.parametrize("visitor", [visit, visit_by_http2], ids=["HTTP/1.1", "HTTP/2"])
async def test_each_visitor_is_told_what_happened(visitor: Visit) -> None:
    """Prove of each phase: the visitor gets the status and the reason that are due, or the end of what has begun."""
    # There is no upgrade in HTTP/2.
    names = [name for name, phase in PHASES.items() if visitor is visit or "Upgrade" not in dict(phase.asks)]
    async with hanging() as edge:
        assert await unmet(edge, visitor, names) == {}


async def test_others_wait_no_longer_than_where_no_app_hangs() -> None:
    """Prove that another user, and another container of the same user, are served as quickly as by an edge at rest."""
    async with hanging() as edge, running_edge() as quiet:
        await furnish(quiet)
        visits = asyncio.ensure_future(unmet(edge, visit, [*PHASES]))
        try:
            assert await times_slower(edge, quiet, lambda count: visits.done() and count >= SAMPLES, OTHERS) < SLOWER
        finally:
            assert await visits == {}


async def test_an_edge_that_is_slow_to_others_is_caught() -> None:
    """Prove that the comparison can fail: an edge whose authorizer takes its time is slower."""

    def slowly(request: external_auth_pb2.CheckRequest) -> Verdict:
        time.sleep(0.3)
        return by_token(request)

    async with running_edge() as edge, running_edge() as quiet:
        for each in (edge, quiet):
            await furnish(each)
        edge.authorizer.answer = slowly
        assert await times_slower(edge, quiet, lambda count: count >= 10) > SLOWER


async def test_without_a_limit_a_visitor_waits_for_ever() -> None:
    """Prove that the table can fail: when each visitor has an answer, those of an edge without that limit have none."""

    def spoil(config: Json) -> Json:
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]  # type: ignore[index]
        manager["stream_idle_timeout"] = "0s"
        return config

    names = [name for name, phase in PHASES.items() if phase.told in (TOO_SLOW, UNREAD)]
    async with hanging() as edge, hanging(spoil) as spoilt:
        waiting = [asyncio.ensure_future(visit(spoilt, path_of(name), PHASES[name])) for name in names]
        try:
            assert await unmet(edge, visit, names) == {}
            assert not any(each.done() for each in waiting)
        finally:
            for each in waiting:
                each.cancel()


async def test_without_its_filters_an_upgrade_that_nobody_asked_for_passes() -> None:
    """Prove that the table can fail: as it came from the app, such an answer reaches the visitor."""

    def spoil(config: Json) -> Json:
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]  # type: ignore[index]
        router = manager["http_filters"][-1]["typed_config"]
        router["upstream_http_filters"] = router["upstream_http_filters"][-1:]
        return config

    async with hanging(spoil) as spoilt, connected(spoilt.socket) as (reader, writer):
        writer.write(PHASES["upgrades-unasked"].request(path_of("upgrades-unasked")))
        assert (await answer(reader)).status == 101
