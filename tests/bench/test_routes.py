"""What a change of routes costs, on simulated VMs behind the real Envoy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
import pytest

from bench.conftest import Interleave, Record
from bench.simulated_node import simulated_edge
from cellmesh.hypervisor.edge.endpoint import Endpoint
from support.edge import DEV, LIVE, Cell, Edge
from support.envoy import ALICE, READY_SECONDS, EdgeUnderTest, running_edge
from support.traffic import visit

_SWITCHES = 200
_SWITCH_MILLISECONDS = 5.0
_SWITCH_MILLISECONDS_P95 = 15.0
_CHANGE_MILLISECONDS = 20.0
_CELLS = 500
_CHANGES = 100


@pytest.fixture
def edge(runner: asyncio.Runner) -> Iterator[Edge]:
    """Give a node with its edge."""
    stack = AsyncExitStack()
    try:
        yield runner.run(stack.enter_async_context(simulated_edge()))
    finally:
        runner.run(stack.aclose())


@pytest.fixture
def bare(runner: asyncio.Runner) -> Iterator[EdgeUnderTest]:
    """Give an Envoy that is told of clusters by this process: nothing is stored."""
    stack = AsyncExitStack()
    try:
        yield runner.run(stack.enter_async_context(running_edge()))
    finally:
        runner.run(stack.aclose())


def test_route_switch(
    edge: Edge, bare: EdgeUnderTest, runner: asyncio.Runner, interleave: Interleave, record: Record
) -> None:
    """Prove that a switch, until a client is answered by the other container only, takes 5 ms, seldom 15."""
    switching = runner.run(Switching.begin(edge))
    telling = runner.run(Telling.begin(bare, clusters=2))
    samples, floors = interleave(
        lambda: runner.run(switching.switch()),
        lambda: runner.run(telling.tell()),
        rounds=_SWITCHES,
        warmup=5,
        reset=lambda: runner.run(switching.look()),
    )
    runner.run(switching.end())
    record(
        "route_switch",
        [1000 * sample for sample in samples],
        floors=[1000 * floor for floor in floors],
        unit="ms",
        max_value=_SWITCH_MILLISECONDS,
        max_p95=_SWITCH_MILLISECONDS_P95,
        emulated=False,
        note="SwitchRoute until its answer, from when on a kept connection is answered by the other container; "
        "floor: an Envoy told of another endpoint until its workers have it, with nothing stored",
    )


def test_route_change_among_many(bare: EdgeUnderTest, runner: asyncio.Runner, record: Record) -> None:
    """Prove that one change among the routes of 500 cells takes at most 20 ms."""
    alone = runner.run(Telling.begin(bare, clusters=2))
    floors = [runner.run(alone.tell()) for _ in range(_CHANGES)]
    among = runner.run(Telling.begin(bare, clusters=2 * _CELLS))
    samples = [runner.run(among.tell()) for _ in range(_CHANGES)]
    record(
        "route_change_500",
        [1000 * sample for sample in samples],
        floors=[1000 * floor for floor in floors],
        unit="ms",
        max_value=_CHANGE_MILLISECONDS,
        emulated=False,
        note="one of 1,000 clusters led elsewhere until Envoy's workers have it; floor: one of two",
    )


@dataclass(eq=False)
class Switching:
    """Switches one route there and back, seen by a client on one connection."""

    edge: Edge
    cell: Cell
    visitor: aiohttp.ClientSession
    stack: AsyncExitStack
    container: str = LIVE

    @classmethod
    async def begin(cls, edge: Edge) -> Switching:
        """Make a cell and a client."""
        cell = await edge.cell(containers=(LIVE, DEV))
        stack = AsyncExitStack()
        visitor = await stack.enter_async_context(edge.visitor(cell.user_id, connections=1))
        return cls(edge=edge, cell=cell, visitor=visitor, stack=stack)

    async def switch(self) -> None:
        """Switch to the other container."""
        self.container = DEV if self.container == LIVE else LIVE
        await self.edge.switch(self.cell, self.container)

    async def look(self) -> None:
        """Prove that a request which begins now is answered by that container."""
        seen = await visit(self.visitor, self.cell.user_id)
        assert seen.canary is not None, seen
        assert seen.canary.container == self.container

    async def end(self) -> None:
        """Let the client go."""
        await self.stack.aclose()


@dataclass(eq=False)
class Telling:
    """Tells an Envoy of another endpoint of one cluster, there and back."""

    edge: EdgeUnderTest
    turn: int = 0

    @classmethod
    async def begin(cls, edge: EdgeUnderTest, *, clusters: int) -> Telling:
        """Make so many clusters, and wait until Envoy has them."""
        it = cls(edge=edge)
        version = edge.discovery.put({f"{ALICE}/_{number}": it.endpoint() for number in range(clusters)})
        for number in range(clusters):
            await edge.discovery.served(f"{ALICE}/_{number}", version, timeout=READY_SECONDS)
        return it

    def endpoint(self) -> Endpoint:
        """Return where the clusters lead at this turn."""
        return Endpoint(path=self.edge.options.directory / f"{self.turn % 2}.sock", vm_id="vm", container="app")

    async def tell(self) -> float:
        """Let a cluster lead elsewhere; return the seconds until it does."""
        self.turn += 1
        begun = time.perf_counter()
        version = self.edge.discovery.put({f"{ALICE}/_1": self.endpoint()})
        await self.edge.discovery.served(f"{ALICE}/_1", version, timeout=READY_SECONDS)
        return time.perf_counter() - begun
