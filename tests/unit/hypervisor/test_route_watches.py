"""The watch over routes and the live view of traffic, over a real store and its journal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import pytest_asyncio

from cellmesh.api.hypervisor.v1 import route_pb2, route_service_pb2
from cellmesh.hypervisor.domain.container import ContainerState, ContainerStatus
from cellmesh.hypervisor.domain.errors import EdgeUnreachable, NodeShuttingDown
from cellmesh.hypervisor.domain.event import AgentMisbehaved, Entry, RouteSwitched, Subject
from cellmesh.hypervisor.domain.route import RouteTarget
from cellmesh.hypervisor.domain.vm import Vm, VmState
from cellmesh.hypervisor.edge.admin import Traffic
from cellmesh.hypervisor.servicers import route_watches
from cellmesh.hypervisor.servicers.route_watches import RouteWatches
from cellmesh.hypervisor.store import Store
from cellmesh.hypervisor.store.transaction import entry as entry_of
from cellmesh.mesh.errors import WatcherTooSlow
from cellmesh.mesh.watch import Change
from cellmesh.service.journal import Journal
from cellmesh.service.shutdown import Shutdown
from support.routes import DEV, LIVE, FakeEdge, add_cell, route
from support.vms import NOW

pytestmark = pytest.mark.asyncio
Answers = AsyncIterator[route_service_pb2.WatchRoutesResponse]
_MORE_THAN_A_QUEUE = 8193


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A store with a relay that publishes what is committed, and what watches it."""

    store: Store
    journal: Journal[Entry]
    edge: FakeEdge
    shutdown: Shutdown
    watches: RouteWatches

    @asynccontextmanager
    async def watching(self, vm_id: str = "") -> AsyncIterator[Answers]:
        """Watch inside."""
        answers: Any = self.watches.routes(vm_id)
        async with asyncio.timeout(30), aclosing(answers):
            yield answers

    async def put(self, vm: Vm, name: str, **status: object) -> None:
        """Let a container be otherwise."""
        async with self.store.transaction() as tx:
            container = await tx.container(vm.vm_id, name)
            assert container is not None
            await tx.save_container(replace(container, status=ContainerStatus(**status)), container)  # type: ignore[arg-type]

    async def lead(self, vm: Vm, name: str) -> None:
        """Let the live route lead elsewhere."""
        async with self.store.transaction() as tx:
            now, target = route(self.store, vm.vm_id).route, RouteTarget(container=name)
            switched = RouteSwitched(prefix="/", origin=now.target, target=target)
            await tx.switch_route(replace(now, target=target), switched, epoch=3, generation=1)


@pytest_asyncio.fixture
async def scene(store: Store) -> AsyncIterator[Scene]:
    """Give a store whose commits are published."""
    journal, edge, shutdown = await Journal.opened(store, entry_of), FakeEdge(store), Shutdown(NodeShuttingDown)
    traffic = cast("Callable[[], Awaitable[dict[str, Traffic]]]", edge.traffic)
    watches = RouteWatches(journal, store.mirror, traffic=traffic, shutdown=shutdown)
    relay = asyncio.ensure_future(journal.relay())
    yield Scene(store=store, journal=journal, edge=edge, shutdown=shutdown, watches=watches)
    relay.cancel()
    await asyncio.gather(relay, return_exceptions=True)


async def test_what_is_there_is_told_first_then_that_it_is_all(scene: Scene) -> None:
    """Of every VM, or of the one that was asked for; then one bookmark."""
    vms = [await add_cell(scene.store) for _ in range(2)]
    for vm_id, expected in (("", [vms[0], vms[1]]), (vms[1].vm_id, [vms[1]])):
        async with scene.watching(vm_id) as answers:
            told = [(await anext(answers)).route for _ in range(2 * len(expected))]
            assert [(found.vm_id, found.prefix) for found in told] == [
                (vm.vm_id, prefix) for vm in expected for prefix in ("/", "/dev/")
            ]
            assert all(found.state == route_pb2.ROUTE_STATE_SERVING for found in told)
            assert (await anext(answers)).bookmark.caught_up


async def test_each_change_is_told_once_and_nothing_else(scene: Scene) -> None:
    """A container that fails, a switch away from it, the end of the VM; what changes no route is not told."""
    vm = await add_cell(scene.store)
    async with scene.watching() as answers:
        for _ in range(3):
            await anext(answers)
        await scene.put(vm, LIVE, state=ContainerState.FAILED, message="No such program.")
        failed = (await anext(answers)).route
        assert (failed.prefix, failed.reason) == ("/", "CONTAINER_FAILED")
        await scene.put(vm, LIVE, state=ContainerState.FAILED, message="No such program.", oom_kills=1)
        await scene.lead(vm, DEV)
        switched = (await anext(answers)).route
        assert (switched.revision, switched.state) == (2, route_pb2.ROUTE_STATE_SERVING)
        async with scene.store.transaction() as tx:
            deleting = await tx.save_vm(vm.move(VmState.DELETING), vm)
            await tx.save_vm(deleting.move(VmState.DELETED), deleting)
        removed = [(await anext(answers)).removed for _ in range(2)]
        assert removed == [
            route_pb2.Route(vm_id=vm.vm_id, user_id=vm.user_id, prefix=prefix) for prefix in ("/", "/dev/")
        ]


async def test_a_new_vm_is_told_of(scene: Scene) -> None:
    """One that comes after the bookmark is news to whoever watches all."""
    async with scene.watching() as answers:
        assert (await anext(answers)).bookmark.caught_up
        vm = await add_cell(scene.store)
        found = [await anext(answers) for _ in range(2)]
        assert {answer.route.vm_id for answer in found} == {vm.vm_id}


async def test_a_busy_vm_starves_nobody_of_bookmarks(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much happens to it that changes no route, a heartbeat comes when it is due."""
    monkeypatch.setattr(route_watches, "HEARTBEAT", 0.0)
    vm = await add_cell(scene.store)
    async with scene.watching(vm.vm_id) as answers:
        for _ in range(3):
            await anext(answers)
        for _ in range(3):
            async with scene.store.transaction() as tx:
                noise = AgentMisbehaved(kind="INVALID_MESSAGE", message="It said nonsense.", count=1)
                await tx.log(Subject(vm_id=vm.vm_id, epoch=3), noise)
            answer = await anext(answers)
            assert answer.HasField("bookmark")
            assert not answer.bookmark.caught_up


async def test_who_reads_too_slowly_is_told_so(scene: Scene) -> None:
    """Nobody's slowness holds up others or fills our memory."""
    async with scene.watching() as answers:
        assert (await anext(answers)).bookmark.caught_up
        for position in range(1, _MORE_THAN_A_QUEUE + 1):
            entry = Entry(sequence=position, time=NOW, subject=Subject(), trace_id="", payload=None, vm=None)
            scene.journal.hub.publish(Change(position=position, item=entry))
        with pytest.raises(WatcherTooSlow):
            await anext(answers)


async def test_watches_end_with_the_hypervisor_and_say_so(scene: Scene) -> None:
    """Both streams are told, not cut."""
    begun = [asyncio.Event(), asyncio.Event()]

    async def read(stream: Any, first: asyncio.Event) -> None:
        async with aclosing(stream):
            async for _ in stream:
                first.set()

    streams = (scene.watches.routes(""), scene.watches.traffic(""))
    reading = [asyncio.ensure_future(read(stream, first)) for stream, first in zip(streams, begun, strict=True)]
    async with asyncio.timeout(30):
        for first in begun:
            await first.wait()
        await scene.shutdown.begin()
        ends = await asyncio.gather(*reading, return_exceptions=True)
    assert [type(end) for end in ends] == [NodeShuttingDown, NodeShuttingDown]


async def test_traffic_is_told_by_route(scene: Scene) -> None:
    """Only of routes there are, that were asked for, of VMs that were meant; what is of nobody any more is left out."""
    first, second = [await add_cell(scene.store) for _ in range(2)]
    busy = Traffic(requests=7, server_errors=1, active=2, received_bytes=10, sent_bytes=20)
    scene.edge.counted = {
        f"{first.user_id}/live": busy,
        f"{first.user_id}/dev": Traffic(received_bytes=1),
        f"{second.user_id}/dev": Traffic(active=1),
        "00000000-0000-4000-8000-000000000000/live": busy,
    }
    everything = await _first(scene, "")
    assert {(line.vm_id, line.prefix) for line in everything} == {(first.vm_id, "/"), (second.vm_id, "/dev/")}
    assert await _first(scene, first.vm_id) == [
        route_service_pb2.RouteTraffic(
            vm_id=first.vm_id,
            user_id=first.user_id,
            prefix="/",
            requests=7,
            server_errors=1,
            active=2,
            received_bytes=10,
            sent_bytes=20,
        )
    ]


async def test_traffic_of_an_edge_that_is_away_is_an_error(scene: Scene) -> None:
    """The stream ends with the reason, for whoever watches to come back."""
    scene.edge.faults.append(EdgeUnreachable("No edge."))
    with pytest.raises(EdgeUnreachable):
        await _first(scene, "")


async def _first(scene: Scene, vm_id: str) -> list[route_service_pb2.RouteTraffic]:
    answers: Any = scene.watches.traffic(vm_id)
    async with aclosing(answers):
        return list((await anext(answers)).traffic)
