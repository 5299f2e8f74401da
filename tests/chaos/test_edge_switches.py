"""A thousand switches under load: nobody is answered by a container that was not routed, and streams stay."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta

import pytest

from cellmesh.api.hypervisor.v1 import container_service_pb2
from cellmesh.hypervisor.edge.discovery import Discovery
from support.edge import DEV, LIVE, Cell, Edge, edge_on_simulator
from support.node import SECONDS, node_here
from support.traffic import Crowd, Line, Routing, crowd, lines

_CONTAINERS = (LIVE, DEV, "red", "blue")
_CLIENTS = 50
_LINES_EACH = 5
_SWITCHES = 1000
_PAUSE = 0.1
"""Between an answer and the next request of a client: together they stay well below what one user may ask for."""
_REQUESTS_BETWEEN = 5
"""How many requests begin and end after a switch before the next: these may see nothing of the one before."""
_DEFECTIVE_SWITCHES = 20
_LATE = 0.5
"""Longer than a request takes on a machine that is busy."""
_DRAIN = timedelta(milliseconds=200)

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(600)
@pytest.mark.asyncio
async def test_a_thousand_switches_under_load() -> None:
    """Prove that no request fails or sees a container that was not routed, and that WebSockets stay with theirs."""
    async with edge_on_simulator() as edge, lines(edge) as sockets:
        cell = await edge.cell(containers=_CONTAINERS)
        routing = Routing(LIVE)
        for container in _CONTAINERS:
            await _switch(edge, cell, routing, container)
            for _ in range(_LINES_EACH):
                assert (await sockets.add(cell.user_id)).canary.container == container
        async with crowd(edge, [cell.user_id] * _CLIENTS, pause=_PAUSE) as visitors:
            await _switch_and_ask(edge, cell, routing, visitors, times=_SWITCHES)
        assert [each for each in visitors.exchanges if each.failed][:3] == []
        assert routing.misrouted(visitors.exchanges)[:3] == []
        assert len(visitors.exchanges) >= _SWITCHES * _REQUESTS_BETWEEN
        assert sockets.lost() == []
        await _drained(edge, cell, sockets.open)
        await _stopped(edge, cell, sockets.open)


@pytest.mark.asyncio
async def test_a_switch_that_answers_too_early_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove that the same judge finds a SwitchRoute which answers before the edge serves what was switched."""
    put = Discovery.put

    def late(self: Discovery, endpoints: object) -> int:
        asyncio.get_running_loop().call_later(_LATE, put, self, endpoints)
        return 0

    async def at_once(*_: object, **__: object) -> None:
        await asyncio.sleep(0)

    async with edge_on_simulator(node_here) as edge:
        cell = await edge.cell(containers=_CONTAINERS)
        routing = Routing(LIVE)
        async with crowd(edge, [cell.user_id] * _CLIENTS, pause=_PAUSE) as visitors:
            await visitors.answered(_CLIENTS)
            monkeypatch.setattr(Discovery, "put", late)
            monkeypatch.setattr(Discovery, "served", at_once)
            await _switch_and_ask(edge, cell, routing, visitors, times=_DEFECTIVE_SWITCHES)
            await asyncio.sleep(2 * _LATE)  # what is late comes before the edge is taken down
        assert routing.misrouted(visitors.exchanges) != []


async def _switch(edge: Edge, cell: Cell, routing: Routing, container: str) -> None:
    with routing.switching(container):
        await edge.switch(cell, container)


async def _switch_and_ask(edge: Edge, cell: Cell, routing: Routing, visitors: Crowd, *, times: int) -> None:
    for number in range(times):
        await _switch(edge, cell, routing, _CONTAINERS[number % len(_CONTAINERS)])
        await visitors.answered(_REQUESTS_BETWEEN)


async def _drained(edge: Edge, cell: Cell, open_lines: list[Line]) -> None:
    """Prove that a drain closes what is open to a container no route leads to any more, and nothing else."""
    await edge.switch(cell, LIVE)
    await edge.switch(cell, DEV, drain=_DRAIN)
    await _lost([line for line in open_lines if line.canary.container == LIVE])
    await _still_there([line for line in open_lines if line.canary.container != LIVE])


async def _stopped(edge: Edge, cell: Cell, open_lines: list[Line]) -> None:
    """Prove whose the lines were all the time: they end with their container."""
    request = container_service_pb2.StopContainerRequest(
        request_id=str(uuid.uuid4()), vm_id=cell.vm_id, container_name="red"
    )
    await edge.it.containers.StopContainer(request)
    await _lost([line for line in open_lines if line.canary.container == "red"])
    await _still_there([line for line in open_lines if line.canary.container in (DEV, "blue")])


async def _lost(some: list[Line]) -> None:
    assert len(some) == _LINES_EACH
    async with asyncio.timeout(SECONDS):
        for line in some:
            await line.lost.wait()


async def _still_there(some: list[Line]) -> None:
    """Wait until each has carried something more."""
    before = [line.echoes for line in some]
    async with asyncio.timeout(SECONDS):
        while any(line.echoes == echoes for line, echoes in zip(some, before, strict=True)):
            assert not any(line.lost.is_set() for line in some)
            await asyncio.sleep(0.02)
