"""An authorizer that is dead, slow or stuck, with and without load: nothing passes, what is open lives, it comes back.

What it costs Envoy is written to build/edge_authorizer.txt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cellmesh.hypervisor.edge.options import EdgeOptions, Json
from cellmesh.hypervisor.edge.routes import AUTHORIZE
from support import tables
from support.envoy import ALICE, BOB, READY_SECONDS, EdgeUnderTest, furnish, running_edge, until
from support.gate import Fault, Gate, gate
from support.http_client import Answer, answer, connected, get, head

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENTS = 200
"""During a fault, under load; before and after it a tenth, as what is asked then has to be answered in time."""
ASKED = 600
"""Requests during a fault, under load."""
LINES = 4
UPGRADE = (("Connection", "upgrade"), ("Upgrade", "websocket"))
FORGED = ("x-cellmesh-user", ALICE)
GROWTH = 24 << 20
FILES = 64
TOLD: list[tuple[object, ...]] = []


def as_delivered(options: EdgeOptions) -> EdgeOptions:
    """Leave the authorizer the time it has by default."""
    return replace(options, authorizer_timeout=EdgeOptions.__dataclass_fields__["authorizer_timeout"].default)


@dataclass(eq=False)
class Load:
    """Clients that ask again and again, each on a connection it keeps, and what they are told."""

    edge: EdgeUnderTest
    clients: int
    told: list[tuple[int, str]] = field(default_factory=list)

    async def ask(self, number: int) -> None:
        """Be one client, until cancelled."""
        user = ALICE if number % 2 else BOB
        async with connected(self.edge.socket) as (reader, writer):
            while True:
                writer.write(head("GET", "/load", user=user, headers=[FORGED]))
                got = await answer(reader)
                self.told.append((got.status, reason(got)))
                await asyncio.sleep(0.02)

    async def served(self) -> None:
        """Wait until as many requests as there are clients have been answered by a container from now on."""
        told = len(self.told)
        await until(lambda: self.told[told:].count((200, "")) >= self.clients)


def reason(got: Answer) -> str:
    """Return the reason of a refusal, and nothing of an answer."""
    return "" if got.status == 200 else str(got.json()["reason"])


@asynccontextmanager
async def loaded(edge: EdgeUnderTest, clients: int) -> AsyncIterator[Load]:
    """Let so many clients ask inside."""
    load = Load(edge, clients)
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(load.ask(number)) for number in range(clients)]
        try:
            yield load
        finally:
            for task in asking:
                task.cancel()


@asynccontextmanager
async def open_lines(edge: EdgeUnderTest) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """Open WebSockets of Alice's."""
    async with asyncio.TaskGroup() as tasks:
        opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        done = asyncio.Event()

        async def hold() -> None:
            async with connected(edge.socket) as line:
                line[1].write(head("GET", "/ws", user=ALICE, headers=UPGRADE))
                assert (await answer(line[0])).status == 101
                opened.append(line)
                await done.wait()

        for _ in range(LINES):
            tasks.create_task(hold())
        await until(lambda: len(opened) == LINES)
        yield opened
        done.set()


async def all_echo(lines: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]], text: bytes) -> None:
    """Say something over each WebSocket and hear it."""
    async with asyncio.timeout(READY_SECONDS):
        for reader, writer in lines:
            writer.write(text)
            assert await reader.readexactly(len(text)) == text


def cost(edge: EdgeUnderTest) -> tuple[int, int]:
    """Return the bytes of memory and the open files of Envoy."""
    assert edge.process is not None
    process = Path(f"/proc/{edge.process.pid}")
    memory = int((process / "status").read_text().split("VmRSS:")[1].split()[0]) << 10
    return memory, len(list((process / "fd").iterdir()))


async def until_recovered(edge: EdgeUnderTest) -> None:
    """Wait until both workers have served again: twenty requests in a row, each on a connection of its own."""
    async with asyncio.timeout(READY_SECONDS):
        good = 0
        while good < 20:
            good = good + 1 if (await get(edge.socket, "/", user=ALICE)).status == 200 else 0


async def fail_and_recover(edge: EdgeUnderTest, authorizer: Gate, fault: Fault, clients: int) -> None:
    """Run the drill: with these clients, nothing passes during the fault, and all does after it."""
    async with open_lines(edge) as lines, loaded(edge, clients // 10) as always:
        await always.served()
        before = cost(edge)
        await authorizer.fail(fault)
        # What was allowed before the fault has been answered once nothing is served any more.
        await until_refused(edge)
        heads = sum(toy.heads for toy in edge.toys.values())
        async with loaded(edge, clients) as load:
            program = await get(edge.socket, "/", user=ALICE, headers=[FORGED])
            page = await get(edge.socket, "/", user=ALICE, headers=[FORGED, ("Accept", "text/html,*/*")])
            upgrade = await get(edge.socket, "/ws", user=ALICE, headers=[FORGED, *UPGRADE])
            await all_echo(lines, b"during")
            await until(lambda: len(load.told) >= min(clients, 1) * ASKED)
            during = cost(edge)
        passed = sum(toy.heads for toy in edge.toys.values()) - heads
        await authorizer.fail(Fault.NONE)
        await until_recovered(edge)
        await always.served()
        await all_echo(lines, b"after")
    TOLD.append((fault.name, clients, len(load.told), authorizer.most, during[0] - before[0] >> 10, during[1]))
    assert passed == 0
    assert set(load.told) <= {(503, "AUTHORIZER_UNREACHABLE")}
    for refused in (program, upgrade):
        assert (refused.status, reason(refused), refused.headers["retry-after"]) == (503, "AUTHORIZER_UNREACHABLE", "2")
    assert page.status == 503
    assert b"AUTHORIZER_UNREACHABLE" in page.body
    assert page.headers["content-type"].startswith("text/html")
    assert during[0] - before[0] < GROWTH
    # The clients' connections, and few beside them.
    assert during[1] - before[1] < clients + FILES


async def until_refused(edge: EdgeUnderTest) -> None:
    """Wait until both workers refuse: twenty requests in a row."""
    async with asyncio.timeout(READY_SECONDS):
        refused = 0
        while refused < 20:
            answers = await asyncio.gather(*(get(edge.socket, "/", user=ALICE) for _ in range(20)))
            refused = sum(got.status == 503 for got in answers)


@pytest.mark.parametrize("clients", [0, CLIENTS], ids=["quiet", "loaded"])
@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.NONE], ids=lambda fault: fault.name)
async def test_no_failure_of_the_authorizer_lets_a_request_pass(fault: Fault, clients: int) -> None:
    """Prove that the edge fails closed with a reason, keeps open WebSockets, stays small, and recovers by itself."""
    async with running_edge(as_delivered) as edge:
        await furnish(edge)
        async with gate(edge.options.authorizer_socket) as authorizer:
            await fail_and_recover(edge, authorizer, fault, clients)
    tables.write(
        "edge_authorizer",
        ("fault", "clients", "refused", "connections to it", "KiB grown", "open files"),
        TOLD,
    )


async def test_without_pings_a_stuck_connection_is_asked_for_ever() -> None:
    """Prove that the drill can fail: when the edge has found a new authorizer, one without pings still refuses."""

    def sound(config: Json) -> Json:
        return config

    def spoil(config: Json) -> Json:
        for cluster in config["static_resources"]["clusters"]:  # type: ignore[index]
            for protocol in cluster["typed_extension_protocol_options"].values():
                protocol["explicit_http_config"]["http2_protocol_options"] = {}
        return config

    async with AsyncExitStack() as stack:
        edges = [await stack.enter_async_context(running_edge(as_delivered, each)) for each in (sound, spoil)]
        for edge in edges:
            authorizer = await stack.enter_async_context(gate(edge.options.authorizer_socket))
            await furnish(edge)
            await until_recovered(edge)
            await authorizer.fail(Fault.HANGS)
            await until_refused(edge)
            await authorizer.fail(Fault.NONE)
        await until_recovered(edges[0])
        await until_refused(edges[1])


@pytest.mark.parametrize("fault", [Fault.REFUSES, Fault.HANGS_UP, Fault.TRICKLES], ids=lambda fault: fault.name)
async def test_an_edge_that_fails_open_is_caught(fault: Fault) -> None:
    """Prove that the drill can fail: with failures allowed and clients believed, a forged request reaches a cell."""

    def spoil(config: Json) -> Json:
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]  # type: ignore[index]
        manager["early_header_mutation_extensions"] = []
        for each in manager["http_filters"]:
            if each["name"] == AUTHORIZE:
                each["typed_config"]["failure_mode_allow"] = True
        return config

    async with running_edge(as_delivered, spoil) as spoilt:
        await furnish(spoilt)
        async with gate(spoilt.options.authorizer_socket) as authorizer:
            await authorizer.fail(fault)
            assert (await get(spoilt.socket, "/", headers=[FORGED])).json()["toy"] == "alice-live"
