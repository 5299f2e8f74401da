"""Five hundred cells behind one edge: what its configuration, its memory and one change cost, and how that grows.

The numbers are written to build/edge_scale.txt; here growth is judged by what a busy machine does not change: a change
by the time processors spent on it, not by what it took.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import timedelta
from statistics import median

import psutil
import pytest

from cellmesh.envoy.discovery.v3 import discovery_pb2, discovery_pb2_grpc
from cellmesh.hypervisor.edge import resources
from support import tables
from support.edge import DEV, LIVE, Cell, Edge, edge_on_simulator
from support.node import SECONDS
from support.raw_calls import channel

_FEW, _MANY = 100, 500
_AT_ONCE = 16
_CHANGES = 40
_HEARTBEATS = timedelta(seconds=30)
_TOLERANCE = 1.25

pytestmark = pytest.mark.chaos


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What an edge of so many cells costs."""

    cells: int
    configuration_bytes: int
    envoy_bytes: int
    """What Envoy has allocated."""
    envoy_resident_bytes: int
    change_seconds: float
    """A switch until it is served, median."""
    change_processor_seconds: float
    """What hypervisor and Envoy compute for a switch, on average."""
    start_seconds: float
    """From Envoy's start until it has it all."""


@pytest.mark.timeout(600)
@pytest.mark.asyncio
async def test_five_hundred_cells() -> None:
    """Prove that no cost of the edge grows faster than the number of its cells."""
    async with edge_on_simulator(heartbeat_interval=_HEARTBEATS) as edge:
        cells = [await edge.cell(containers=(LIVE, DEV))]
        one = await _measured(edge, cells)
        cells += await _more(edge, _FEW - len(cells))
        few = await _measured(edge, cells)
        cells += await _more(edge, _MANY - len(cells))
        many = await _measured(edge, cells)
    tables.write("edge_scale", _HEADINGS, [_row(size) for size in (one, few, many)])
    times = _MANY / _FEW * _TOLERANCE
    assert many.configuration_bytes <= times * few.configuration_bytes
    assert many.envoy_bytes - one.envoy_bytes <= times * (few.envoy_bytes - one.envoy_bytes)
    assert many.change_processor_seconds <= times * few.change_processor_seconds


async def _more(edge: Edge, count: int) -> list[Cell]:
    """Run more cells, and let each answer once: a cluster costs Envoy little before."""
    free = asyncio.Semaphore(_AT_ONCE)

    async def one() -> Cell:
        async with free:
            return await edge.cell()

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def _measured(edge: Edge, cells: list[Cell]) -> Size:
    await edge.envoy.end()
    begun = time.perf_counter()
    await edge.envoy.start()
    await edge.until_served(cells[-1], "/")
    started = time.perf_counter() - begun
    async with edge.visitor("", connections=_AT_ONCE) as visitor:
        for each in cells:
            headers = {"authorization": f"Bearer dev-{each.user_id}"}
            async with visitor.get("/", headers=headers) as answer:
                assert answer.status == 200
    changes, computed = [], _processor_seconds(edge)
    for number in range(_CHANGES):
        before = time.perf_counter()
        await edge.switch(cells[0], (DEV, LIVE)[number % 2])
        changes.append(time.perf_counter() - before)
    computed = _processor_seconds(edge) - computed
    return Size(
        cells=len(cells),
        configuration_bytes=await _configuration_bytes(edge),
        envoy_bytes=await _allocated(edge),
        envoy_resident_bytes=psutil.Process(edge.envoy.pid).memory_info().rss,
        change_seconds=median(changes),
        change_processor_seconds=computed / _CHANGES,
        start_seconds=started,
    )


def _processor_seconds(edge: Edge) -> float:
    """Return what hypervisor and Envoy have computed since they were started."""
    assert edge.it.process is not None
    used = [psutil.Process(pid).cpu_times() for pid in (edge.it.process.pid, edge.envoy.pid)]
    return sum(times.user + times.system for times in used)


async def _allocated(edge: Edge) -> int:
    """Return the bytes Envoy has allocated by now.

    It counts them every five seconds only; what it says before is what it had when it started, whatever came since.
    """
    counters = r"^server\.(memory_allocated|uptime)$"
    counted = (await edge.admin.stats(counters))["server.uptime"]
    async with asyncio.timeout(SECONDS):
        while (now := await edge.admin.stats(counters))["server.uptime"] == counted:  # noqa: ASYNC110  # of Envoy
            await asyncio.sleep(0.1)
    return now["server.memory_allocated"]


async def _configuration_bytes(edge: Edge) -> int:
    """Return the size of all that an Envoy which comes new is told: clusters, then where they lead."""
    total = (edge.directory / "envoy.json").stat().st_size
    async with channel(edge.directory / "edge.sock") as line:
        answers = discovery_pb2_grpc.AggregatedDiscoveryServiceStub(line).DeltaAggregatedResources()
        await answers.write(
            discovery_pb2.DeltaDiscoveryRequest(node=discovery_pb2.Node(id="measuring"), type_url=resources.CLUSTER)
        )
        clusters = await answers.read()
        names = [resource.name for resource in clusters.resources]
        await answers.write(
            discovery_pb2.DeltaDiscoveryRequest(type_url=resources.ENDPOINT, resource_names_subscribe=names)
        )
        endpoints = await answers.read()
        answers.cancel()
    assert len(endpoints.resources) == len(names)
    return total + clusters.ByteSize() + endpoints.ByteSize()


_HEADINGS = (
    "cells",
    "configuration KiB",
    "Envoy MiB",
    "Envoy RSS MiB",
    "one change ms",
    "of processors ms",
    "Envoy's start ms",
)


def _row(size: Size) -> tuple[object, ...]:
    return (
        size.cells,
        f"{size.configuration_bytes / 1024:.0f}",
        f"{size.envoy_bytes / (1 << 20):.1f}",
        f"{size.envoy_resident_bytes / (1 << 20):.1f}",
        f"{1000 * size.change_seconds:.1f}",
        f"{1000 * size.change_processor_seconds:.1f}",
        f"{1000 * size.start_seconds:.0f}",
    )
