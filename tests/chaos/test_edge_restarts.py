"""Containers that are restarted and stopped under load: the edge has left each before it is told to end."""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from datetime import timedelta

import pytest

from cellmesh.api.hypervisor.v1 import container_service_pb2
from cellmesh.hypervisor.edge.discovery import Discovery
from cellmesh.hypervisor.edge.endpoint import Endpoints
from cellmesh.hypervisor.edge.publisher import Publisher
from support.edge import DEV, LIVE, Cell, Edge, edge_on_simulator
from support.node import SECONDS, node_here
from support.traffic import Exchange, crowd, lines

_CLIENTS = 20
_PAUSE = 0.02
_RESTARTS = 30
_DEFECTIVE_RESTARTS = 10
_LATE = 0.5
"""By when every request that was sent to a container which is gone has been given up."""
_DRAIN = timedelta(seconds=10)
"""Long enough to kill the hypervisor before."""
# What Envoy says by itself when it asks a container that is not there, or not any more.
_TOO_LATE = frozenset({"CONTAINER_UNREACHABLE", "CONTAINER_HUNG_UP", "CONTAINER_ANSWER_INVALID"})

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio]


async def test_a_restart_fails_no_request() -> None:
    """Prove that each request is answered by a container or told to wait: none is sent to one that is gone."""
    async with edge_on_simulator() as edge:
        exchanges = await _restart_under_load(edge, times=_RESTARTS)
    assert [each for each in exchanges if _reason(each) in _TOO_LATE | {""}][:3] == []
    generations = {each.canary.generation for each in exchanges if each.canary is not None}
    assert len(generations) > _RESTARTS // 2


async def test_an_edge_that_is_not_waited_for_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove that the same judge finds containers that end while the edge still leads to them."""
    put = Discovery.put

    def late(self: Discovery, endpoints: Endpoints) -> int:
        asyncio.get_running_loop().call_later(_LATE, put, self, endpoints)
        return 0

    async def at_once(*_: object) -> None:
        await asyncio.sleep(0)

    async with edge_on_simulator(node_here) as edge:
        cell = await edge.cell()
        monkeypatch.setattr(Discovery, "put", late)
        monkeypatch.setattr(Publisher, "settled", at_once)
        exchanges = await _restart_under_load(edge, times=_DEFECTIVE_RESTARTS, cell=cell)
        await asyncio.sleep(2 * _LATE)  # what is late comes before the edge is taken down
    assert [each for each in exchanges if _reason(each) in _TOO_LATE] != []


async def test_a_drain_outlives_the_hypervisor_that_was_asked_for_it() -> None:
    """Prove that a stream whose route has left it ends when it is to, though the hypervisor was killed meanwhile."""
    async with edge_on_simulator() as edge, lines(edge, pause=_PAUSE) as sockets:
        cell = await edge.cell(containers=(LIVE, DEV))
        line = await sockets.add(cell.user_id)
        await edge.switch(cell, DEV, drain=_DRAIN)
        await edge.it.hang_up()
        await edge.it.stop(signal.SIGKILL)
        assert not line.lost.is_set()
        await edge.it.start()
        async with asyncio.timeout(SECONDS):
            await line.lost.wait()


async def _restart_under_load(edge: Edge, *, times: int, cell: Cell | None = None) -> list[Exchange]:
    cell = cell or await edge.cell()
    async with crowd(edge, [cell.user_id] * _CLIENTS, pause=_PAUSE) as visitors:
        for _ in range(times):
            await edge.it.containers.RestartContainer(
                container_service_pb2.RestartContainerRequest(
                    request_id=str(uuid.uuid4()), vm_id=cell.vm_id, container_name=LIVE
                )
            )
            await visitors.answered(_CLIENTS)
        return list(visitors.exchanges)


def _reason(exchange: Exchange) -> str:
    """Return why no container answered: a reason of the contract, SERVED if one did, nothing if nobody said."""
    if not exchange.failed:
        return "SERVED"
    try:
        reason = json.loads(exchange.fault)["reason"]
    except (ValueError, LookupError, TypeError):
        return ""
    return str(reason)
