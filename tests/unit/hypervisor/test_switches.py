"""Switching a route: stored with its event, served before it is answered, undone if the edge refuses."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
import pytest_asyncio

from cellmesh.hypervisor.domain.container import MAX_CONTAINERS
from cellmesh.hypervisor.domain.errors import (
    ContainerNotFound,
    EdgeUnreachable,
    GenerationNotFound,
    NodeShuttingDown,
    RouteChanged,
    RouteNotFound,
    RouteRefused,
    VmDeleting,
    VmNotFound,
)
from cellmesh.hypervisor.domain.event import RouteRefused as Refused
from cellmesh.hypervisor.domain.event import RouteSwitched
from cellmesh.hypervisor.domain.route import Drain, RouteState, RouteTarget
from cellmesh.hypervisor.domain.vm import DesiredState, Vm, VmState
from cellmesh.hypervisor.lifecycle.switches import Switches
from cellmesh.hypervisor.store import Store
from cellmesh.mesh.errors import InternalError, MeshError, RequestIdReused
from support.intents import intent
from support.routes import DEV, LIVE, FakeEdge, add_cell, route, switch, told, wish
from support.vms import make_container

pytestmark = pytest.mark.asyncio
PATIENCE = 30.0
TO_LIVE, TO_DEV = RouteTarget(container=LIVE), RouteTarget(container=DEV)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A cell, its edge, and what switches its routes."""

    store: Store
    edge: FakeEdge
    switches: Switches
    vm: Vm


@pytest_asyncio.fixture
async def scene(store: Store) -> AsyncIterator[Scene]:
    """Give a cell whose `/` leads to live."""
    edge = FakeEdge(store)
    switches = Switches(store=store, edge=edge, failpoint=lambda _: None)
    vm = await add_cell(store)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(switches.run())
        await asyncio.sleep(0)
        yield Scene(store=store, edge=edge, switches=switches, vm=vm)
        running.cancel()


async def test_a_switch_is_stored_told_and_served(scene: Scene) -> None:
    """The answer says who answers now; by then the edge serves it, and the log has one event of it."""
    found = await switch(scene.switches, intent(), wish(scene.vm), patience=PATIENCE)
    assert found == route(scene.store, scene.vm.vm_id)
    assert (found.route.target, found.route.revision) == (TO_DEV, 2)
    assert (found.status.state, found.status.epoch, found.status.generation) == (RouteState.SERVING, 3, 7)
    assert scene.edge.served_targets == [TO_DEV]
    assert await told(scene.store) == [RouteSwitched(prefix="/", origin=TO_LIVE, target=TO_DEV)]
    async with scene.store.reading() as reading:
        last = (await reading.entries(after=0, limit=1000))[-1].subject
    assert (last.container_name, last.epoch, last.generation) == (DEV, 3, 7)


async def test_a_route_may_lead_to_one_generation_only(scene: Scene) -> None:
    """The present generation can be pinned; a generation that does not run cannot."""
    found = await switch(scene.switches, intent(), wish(scene.vm, generation=7), patience=PATIENCE)
    assert found.route.target == RouteTarget(container=DEV, generation=7)
    for generation in (6, 8, 2**64 - 1):
        with pytest.raises(GenerationNotFound, match="generation 7"):
            await switch(scene.switches, intent(), wish(scene.vm, generation=generation), patience=PATIENCE)


async def test_a_switch_to_where_it_leads_changes_nothing(scene: Scene) -> None:
    """No event, no new revision; it is still only answered once it is served."""
    found = await switch(scene.switches, intent(), wish(scene.vm, LIVE), patience=PATIENCE)
    assert found.route.revision == 1
    assert await told(scene.store) == []
    assert scene.edge.served_targets == [TO_LIVE]


async def test_a_repeated_request_gets_the_first_answer(scene: Scene) -> None:
    """Though the route was switched back since; and one id is good for one wish."""
    first = intent()
    answer = await switch(scene.switches, first, wish(scene.vm), patience=PATIENCE)
    await switch(scene.switches, intent(), wish(scene.vm, LIVE), patience=PATIENCE)
    assert await switch(scene.switches, first, wish(scene.vm), patience=PATIENCE) == answer
    assert route(scene.store, scene.vm.vm_id).route.target == TO_LIVE
    with pytest.raises(RequestIdReused):
        await switch(scene.switches, replace(first, fingerprint=b"y"), wish(scene.vm), patience=PATIENCE)


async def test_what_the_edge_refuses_is_undone(scene: Scene) -> None:
    """The route leads where it led, the log has the refusal in the edge's words, and a repeat is refused again."""
    scene.edge.faults.append(RouteRefused("bad endpoint"))
    first = intent()
    for _ in range(2):
        with pytest.raises(MeshError, match="bad endpoint") as refused:
            await switch(scene.switches, first, wish(scene.vm), patience=PATIENCE)
        assert refused.value.reason == RouteRefused.reason
        now = route(scene.store, scene.vm.vm_id).route
        assert (now.target, now.revision) == (TO_LIVE, 3)
    assert await told(scene.store) == [
        RouteSwitched(prefix="/", origin=TO_LIVE, target=TO_DEV),
        Refused(prefix="/", target=TO_DEV, message="bad endpoint"),
    ]
    assert (await switch(scene.switches, intent(), wish(scene.vm), patience=PATIENCE)).route.revision == 4


async def test_a_refusal_is_undone_though_nobody_waits_for_it(scene: Scene) -> None:
    """The caller ran out of patience, the edge refuses later: the route goes back all the same."""
    scene.edge.faults.append(RouteRefused("bad endpoint"))
    scene.edge.open.clear()
    with pytest.raises(EdgeUnreachable):
        await switch(scene.switches, intent(), wish(scene.vm), patience=0.0)
    assert route(scene.store, scene.vm.vm_id).route.target == TO_DEV
    scene.edge.open.set()
    await _until(scene, lambda: route(scene.store, scene.vm.vm_id).route.target == TO_LIVE)


async def test_a_caller_who_hangs_up_does_not_keep_a_refusal_from_being_undone(scene: Scene) -> None:
    """As for one that ran out of patience."""
    scene.edge.faults.append(RouteRefused("bad endpoint"))
    scene.edge.open.clear()
    calling = asyncio.ensure_future(switch(scene.switches, intent(), wish(scene.vm), patience=PATIENCE))
    await scene.edge.asked.wait()
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    scene.edge.open.set()
    await _until(scene, lambda: route(scene.store, scene.vm.vm_id).route.target == TO_LIVE)


async def test_a_refusal_that_was_overtaken_undoes_nothing(scene: Scene) -> None:
    """A later switch stands; and if that one is refused too, the route leads to what was proven to be served."""
    scene.edge.open.clear()
    scene.edge.faults += [RouteRefused("first"), RouteRefused("second")]
    both = [
        asyncio.ensure_future(switch(scene.switches, intent(), wish(scene.vm, *target), patience=PATIENCE))
        for target in ((DEV,), (DEV, 7))
    ]
    await _until(scene, lambda: route(scene.store, scene.vm.vm_id).route.revision == 3)
    scene.edge.open.set()
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [RouteRefused, RouteRefused]
    assert route(scene.store, scene.vm.vm_id).route.target == TO_LIVE
    assert len([payload for payload in await told(scene.store) if isinstance(payload, Refused)]) == 1


async def test_without_an_edge_the_wish_is_kept(scene: Scene) -> None:
    """UNAVAILABLE, and what was stored is what an edge will serve; the same request succeeds when one is there."""
    scene.edge.faults.append(EdgeUnreachable("No edge is connected."))
    first = intent()
    with pytest.raises(EdgeUnreachable):
        await switch(scene.switches, first, wish(scene.vm), patience=PATIENCE)
    assert route(scene.store, scene.vm.vm_id).route.target == TO_DEV
    assert (await switch(scene.switches, first, wish(scene.vm), patience=PATIENCE)).route.revision == 2


async def test_a_fault_of_ours_ends_one_call_only(scene: Scene) -> None:
    """Whatever the edge's side raises, the next switch is taken as ever."""
    scene.edge.faults.append(ZeroDivisionError("planted"))
    with pytest.raises(InternalError):
        await switch(scene.switches, intent(), wish(scene.vm), patience=PATIENCE)
    assert await switch(scene.switches, intent(), wish(scene.vm, LIVE), patience=PATIENCE)


async def test_a_switch_of_something_else_than_was_seen_is_refused(scene: Scene) -> None:
    """With the revision that was read it is taken; with an older one nothing is changed."""
    await switch(scene.switches, intent(), wish(scene.vm, expected_revision=1), patience=PATIENCE)
    with pytest.raises(RouteChanged, match="has revision 2"):
        await switch(scene.switches, intent(), wish(scene.vm, LIVE, expected_revision=1), patience=PATIENCE)
    assert route(scene.store, scene.vm.vm_id).route.target == TO_DEV


async def test_what_is_not_there_is_said_to_be_missing(scene: Scene) -> None:
    """Each of VM, route and container has its own reason; a VM that goes takes no switch."""
    with pytest.raises(VmNotFound):
        await switch(scene.switches, intent(), wish(scene.vm, vm_id=str(uuid.uuid4())), patience=PATIENCE)
    with pytest.raises(RouteNotFound):
        await switch(scene.switches, intent(), wish(scene.vm, prefix="/_/nobody/"), patience=PATIENCE)
    with pytest.raises(ContainerNotFound):
        await switch(scene.switches, intent(), wish(scene.vm, "nobody"), patience=PATIENCE)
    going = await add_cell(scene.store, state=VmState.RUNNING, desired=DesiredState.DELETED)
    with pytest.raises(VmDeleting):
        await switch(scene.switches, intent(), wish(going), patience=PATIENCE)
    assert await told(scene.store) == []


async def test_what_a_route_left_is_drained_when_it_was_asked_for(scene: Scene) -> None:
    """After its time, and in the generation that was left."""
    drain = {"drain_timeout": timedelta(milliseconds=1)}
    await switch(scene.switches, intent(), wish(scene.vm, **drain), patience=PATIENCE)
    await scene.edge.drain_seen.wait()
    assert scene.edge.drained == [(LIVE, 2)]


async def test_what_a_route_leads_to_is_not_drained(scene: Scene) -> None:
    """Another route to the same container keeps its streams; what no route leads to any more loses them."""
    now = {"drain_timeout": timedelta()}
    await switch(scene.switches, intent(), wish(scene.vm, LIVE, prefix="/dev/"), patience=PATIENCE)
    await switch(scene.switches, intent(), wish(scene.vm, DEV, **now), patience=PATIENCE)
    await switch(scene.switches, intent(), wish(scene.vm, LIVE, **now), patience=PATIENCE)
    await scene.edge.drain_seen.wait()
    assert scene.edge.drained == [(DEV, 7)]


async def test_what_a_route_leads_to_again_is_not_drained(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch back within the time keeps the streams."""
    soon, now = timedelta(milliseconds=50), [scene.store.now()]
    # The time between the two is no longer than the first drain, however long the commits take.
    monkeypatch.setattr(scene.store, "_clock", lambda: now[0])
    async with scene.store.transaction() as tx:
        await tx.save_container(make_container(scene.vm.vm_id, "other", ingress_slot=2), None)
    await switch(scene.switches, intent(), wish(scene.vm, "other", prefix="/dev/"), patience=PATIENCE)
    await switch(scene.switches, intent(), wish(scene.vm, DEV, drain_timeout=soon), patience=PATIENCE)
    await switch(scene.switches, intent(), wish(scene.vm, LIVE, drain_timeout=2 * soon), patience=PATIENCE)
    now[0] += 3 * soon
    await scene.edge.drain_seen.wait()
    assert scene.edge.drained == [(DEV, 7)]


async def test_without_being_asked_nothing_is_drained(scene: Scene) -> None:
    """Open streams stay with their container; only the one that was asked for is drained."""
    await switch(scene.switches, intent(), wish(scene.vm, DEV), patience=PATIENCE)
    await switch(scene.switches, intent(), wish(scene.vm, LIVE, prefix="/dev/"), patience=PATIENCE)
    assert scene.edge.drained == []
    await switch(scene.switches, intent(), wish(scene.vm, LIVE, drain_timeout=timedelta()), patience=PATIENCE)
    await scene.edge.drain_seen.wait()
    assert scene.edge.drained == [(DEV, 7)]


async def test_a_drain_outlives_the_hypervisor(store: Store) -> None:
    """What one was asked to drain, the next does, once it is time and the edge leads where it is to lead."""
    edge = FakeEdge(store)
    vm = await add_cell(store)
    async with _running(Switches(store=store, edge=edge, failpoint=lambda _: None)) as switches:
        edge.open.clear()
        with pytest.raises(EdgeUnreachable):
            await switch(switches, intent(), wish(vm, drain_timeout=timedelta()), patience=0.0)
    assert edge.drained == []
    edge.faults += [EdgeUnreachable("no Envoy yet"), RouteRefused("not this")]
    edge.open.set()
    async with _running(Switches(store=store, edge=edge, failpoint=lambda _: None)):
        async with asyncio.timeout(PATIENCE):
            await edge.drain_seen.wait()
    assert edge.drained == [(LIVE, 2)]
    assert edge.faults == []


async def test_a_drain_is_done_once(scene: Scene) -> None:
    """Done or in vain, it is not stored any longer, nor with the VM it was for."""
    scene.edge.drain_fault = OSError("no bridge")
    await switch(scene.switches, intent(), wish(scene.vm, drain_timeout=timedelta()), patience=PATIENCE)
    await scene.edge.drain_seen.wait()
    async with asyncio.timeout(PATIENCE):
        while await _drains(scene):  # noqa: ASYNC110  # a row that goes sets no event here
            await asyncio.sleep(0.001)
    long = timedelta(hours=1)
    await switch(scene.switches, intent(), wish(scene.vm, LIVE, drain_timeout=long), patience=PATIENCE)
    assert [(drain.container, drain.generation) for drain in await _drains(scene)] == [(DEV, 7)]
    async with scene.store.transaction() as tx:
        vm = await tx.vm(scene.vm.vm_id)
        assert vm is not None
        await tx.save_vm(replace(vm, state=VmState.DELETED), vm)
    assert await _drains(scene) == []


async def test_what_is_refused_drains_nothing(scene: Scene) -> None:
    """The route leads where it led, and whoever is connected there stays."""
    scene.edge.faults.append(RouteRefused("bad endpoint"))
    with pytest.raises(RouteRefused):
        await switch(scene.switches, intent(), wish(scene.vm, drain_timeout=timedelta(hours=1)), patience=PATIENCE)
    assert await _drains(scene) == []


async def test_a_route_that_leads_back_drains_nothing_later(scene: Scene) -> None:
    """Who leaves again without wishing a drain does not get the one that was wished before."""
    long = timedelta(hours=1)
    await switch(scene.switches, intent(), wish(scene.vm, DEV, drain_timeout=long), patience=PATIENCE)
    await switch(scene.switches, intent(), wish(scene.vm, LIVE), patience=PATIENCE)
    await switch(scene.switches, intent(), wish(scene.vm, DEV), patience=PATIENCE)
    assert await _drains(scene) == []


async def _drains(scene: Scene) -> Sequence[Drain]:
    async with scene.store.reading() as reading:
        return await reading.drains()


@asynccontextmanager
async def _running(switches: Switches) -> AsyncIterator[Switches]:
    """Let what switches run inside."""
    running = asyncio.ensure_future(switches.run())
    await asyncio.sleep(0)
    try:
        yield switches
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_switch_that_ends_with_the_hypervisor_says_so(store: Store) -> None:
    """Nobody waits for an answer that cannot come."""
    edge = FakeEdge(store)
    switches = Switches(store=store, edge=edge, failpoint=lambda _: None)
    vm = await add_cell(store)
    running = asyncio.ensure_future(switches.run())
    await asyncio.sleep(0)
    edge.open.clear()
    calling = asyncio.ensure_future(switch(switches, intent(), wish(vm), patience=PATIENCE))
    await edge.asked.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    with pytest.raises(NodeShuttingDown):
        await calling
    with pytest.raises(NodeShuttingDown):
        await switch(switches, intent(), wish(vm, LIVE), patience=PATIENCE)


async def test_as_many_routes_as_containers_can_be_switched_at_once(scene: Scene) -> None:
    """Switches of different routes and VMs do not wait for one another, and each is answered for itself."""
    cells = [await add_cell(scene.store) for _ in range(MAX_CONTAINERS)]
    answers = await asyncio.gather(*(switch(scene.switches, intent(), wish(vm), patience=PATIENCE) for vm in cells))
    assert [answer.route.vm_id for answer in answers] == [vm.vm_id for vm in cells]


async def _until(scene: Scene, holds: Callable[[], bool]) -> None:
    """Wait for a commit after which something holds."""
    with scene.store.changes.watched(scene.vm.vm_id) as changed:
        async with asyncio.timeout(PATIENCE):
            while not holds():
                await changed.wait()
                changed.clear()
