"""Reading routes, and what a request that nobody can answer sets in motion."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from cellmesh.hypervisor.domain.container import ContainerSpec
from cellmesh.hypervisor.domain.errors import RouteNotFound, TooManyContainers, VmNotFound
from cellmesh.hypervisor.domain.route import RouteState
from cellmesh.hypervisor.domain.vm import ColdStart, DesiredState, Vm, VmSpec, VmState
from cellmesh.hypervisor.lifecycle.admission import Admission
from cellmesh.hypervisor.lifecycle.attempts import Attempts
from cellmesh.hypervisor.lifecycle.containers import Containers
from cellmesh.hypervisor.lifecycle.routes import Routes
from cellmesh.hypervisor.lifecycle.vms import Vms
from cellmesh.hypervisor.store import Store
from cellmesh.image import ImageStore
from support.hollow_images import hollow_container, hollow_guest
from support.intents import intent
from support.routes import LIVE, add_cell, route
from support.vms import NOW, make_container

pytestmark = pytest.mark.asyncio
STOPPED = {"state": VmState.STOPPED, "desired": DesiredState.STOPPED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A store, and what reads and changes it."""

    store: Store
    vms: Vms
    containers: Containers
    routes: Routes
    image: str


@pytest_asyncio.fixture
async def scene(store: Store, tmp_path: Path) -> Scene:
    """Give a node without VMs."""
    hollow_guest(tmp_path / "images")
    image, images = hollow_container(tmp_path / "images"), ImageStore(tmp_path / "images")
    vms = Vms(
        store=store,
        images=images,
        admission=Admission(max_vms=10, memory_capacity_bytes=1 << 40),
        follow=lambda _: None,
        failpoint=lambda _: None,
    )
    containers = Containers(
        store=store, images=images, attempts=Attempts(store.changes), guests=None, failpoint=lambda _: None
    )
    return Scene(store=store, vms=vms, containers=containers, routes=Routes(store=store, vms=vms), image=image)


async def _start(scene: Scene, vm: Vm, name: str) -> None:
    spec = ContainerSpec(image=scene.image, stop_grace=timedelta(), document=b"")
    await scene.containers.start(intent(), vm.vm_id, name, spec)


async def test_a_vm_is_made_with_its_routes(scene: Scene) -> None:
    """They are there with the VM, and gone with it."""
    vm = (await scene.vms.create(intent(), str(uuid.uuid4()), VmSpec(guest_image=""))).value
    assert [found.route.prefix for found in scene.store.mirror.routes(vm.vm_id)] == ["/", "/dev/"]
    async with scene.store.transaction() as tx:
        assert [found.prefix for found in await tx.routes(vm.vm_id)] == ["/", "/dev/"]
        going = await tx.save_vm(vm.move(VmState.DELETING), vm)
        await tx.save_vm(going.move(VmState.DELETED), going)
    assert scene.store.mirror.routes(vm.vm_id) == []
    async with scene.store.reading() as reading:
        assert await reading.routes(vm.vm_id) == []
    with pytest.raises(VmNotFound):
        scene.routes.get(vm.vm_id, "/")


async def test_a_sidecar_gets_its_route_and_port_with_its_first_start(scene: Scene) -> None:
    """The first start adds them, a later one changes neither; a sandbox needs no route of its own."""
    vm = (await scene.vms.create(intent(), str(uuid.uuid4()), VmSpec(guest_image=""))).value
    for name in (LIVE, "search", "search"):
        await _start(scene, vm, name)
    assert [found.route.prefix for found in scene.store.mirror.routes(vm.vm_id)] == ["/", "/_/search/", "/dev/"]
    assert scene.routes.get(vm.vm_id, "/_/search/").route.target.container == "search"
    slots = {container.name: container.ingress_slot for container in scene.store.mirror.containers(vm.vm_id)}
    assert slots == {LIVE: 0, "search": 1}


async def test_a_start_that_is_refused_adds_no_route(scene: Scene) -> None:
    """A container that may not be has no path either."""
    vm = (await scene.vms.create(intent(), str(uuid.uuid4()), VmSpec(guest_image=""))).value
    for number in range(16):
        await _start(scene, vm, f"box-{number}")
    with pytest.raises(TooManyContainers):
        await _start(scene, vm, "one-more")
    with pytest.raises(RouteNotFound):
        scene.routes.get(vm.vm_id, "/_/one-more/")
    assert len(scene.store.mirror.routes(vm.vm_id)) == 2 + 16


async def test_routes_survive_a_restart(scene: Scene, tmp_path: Path) -> None:
    """What another hypervisor reads from the database is what this one had."""
    vm = await add_cell(scene.store)
    async with Store.opened(tmp_path / "hypervisor.db") as again:
        assert again.mirror.routes(vm.vm_id) == scene.store.mirror.routes(vm.vm_id)
        assert again.mirror.vm_of_user(vm.user_id) == vm


async def test_a_list_goes_on_where_it_ended(scene: Scene) -> None:
    """Page by page every route comes once: by VM from the oldest, then by prefix; also of one VM only."""
    vms = [await add_cell(scene.store, create_time=NOW + timedelta(seconds=-age)) for age in range(3)]
    expected = [(vm.vm_id, prefix) for vm in reversed(vms) for prefix in ("/", "/dev/")]
    for limit in (1, 2, 4, 100):
        position, listed = None, []
        while page := scene.routes.list(vm_id="", after=position, limit=limit):
            assert len(page) <= limit
            listed += [(found.route.vm_id, found.route.prefix) for _, found in page]
            position = page[-1][0]
        assert listed == expected
    only = scene.routes.list(vm_id=vms[1].vm_id, after=None, limit=100)
    assert [found.route.vm_id for _, found in only] == [vms[1].vm_id] * 2
    gone = (NOW - timedelta(seconds=1), vms[1].vm_id, "/dev/")
    assert [found.route.vm_id for _, found in scene.routes.list(vm_id="", after=gone, limit=1)] == [vms[0].vm_id]


async def test_a_request_starts_a_stopped_vm(scene: Scene) -> None:
    """It is wanted from then on; asked again, nothing more happens."""
    vm = await add_cell(scene.store, **STOPPED)
    for _ in range(2):
        found = await scene.routes.activate(vm.user_id, "/")
        assert (found.route.status.state, found.route.status.reason) == (RouteState.WAITING, "VM_STARTING")
        assert found.vm_state is VmState.PENDING
        assert found.retry_after == timedelta(seconds=1)
    now = scene.store.mirror.vm(vm.vm_id)
    assert now is not None
    assert (now.desired, now.revision) == (DesiredState.RUNNING, vm.revision + 1)


@pytest.mark.parametrize(
    ("fields", "reason", "again"),
    [
        ({**STOPPED, "spec": VmSpec(guest_image="x", cold_start=ColdStart.NEVER)}, "VM_STOPPED", False),
        ({"state": VmState.STOPPING, "desired": DesiredState.STOPPED}, "VM_STOPPING", True),
        ({"state": VmState.FAILED}, "VM_FAILED", False),
        ({"state": VmState.QUARANTINED}, "VM_QUARANTINED", False),
        ({"state": VmState.STOPPED, "desired": DesiredState.DELETED}, "VM_DELETING", False),
        ({"state": VmState.BACKOFF}, "VM_RESTARTING", True),
    ],
)
async def test_a_request_starts_nothing_else(scene: Scene, fields: dict[str, object], reason: str, again: bool) -> None:
    """What may not start by a request, failed, or is under way is left as it is, and said."""
    vm = await add_cell(scene.store, **fields)
    found = await scene.routes.activate(vm.user_id, "/")
    assert (found.route.status.reason, found.vm_state) == (reason, vm.state)
    assert (found.retry_after is not None) == again
    assert scene.store.mirror.vm(vm.vm_id) == vm


async def test_a_draining_node_starts_nothing(scene: Scene) -> None:
    """The request is told so, with no time to come back."""
    vm = await add_cell(scene.store, **STOPPED)
    async with scene.store.transaction() as tx:
        await tx.set_draining(draining=True)
    found = await scene.routes.activate(vm.user_id, "/")
    assert (found.route.status.reason, found.retry_after) == ("NODE_DRAINING", None)
    assert scene.store.mirror.vm(vm.vm_id) == vm


async def test_a_request_that_is_answered_waits_for_nothing(scene: Scene) -> None:
    """By the time it is asked about, the container may be there."""
    vm = await add_cell(scene.store)
    found = await scene.routes.activate(vm.user_id, "/")
    assert found.route == route(scene.store, vm.vm_id)
    assert (found.route.status.state, found.vm_state, found.retry_after) == (
        RouteState.SERVING,
        VmState.RUNNING,
        None,
    )


async def test_a_request_for_what_is_not_there_starts_nothing(scene: Scene) -> None:
    """Neither a stranger nor a path that leads nowhere wakes a VM."""
    vm = await add_cell(scene.store, **STOPPED)
    with pytest.raises(VmNotFound):
        await scene.routes.activate(str(uuid.uuid4()), "/")
    with pytest.raises(RouteNotFound):
        await scene.routes.activate(vm.user_id, "/_/nobody/")
    assert scene.store.mirror.vm(vm.vm_id) == vm


async def test_a_route_follows_its_container_from_commit_to_commit(scene: Scene) -> None:
    """The same route, no revision more: who answers changes with the container alone."""
    vm = await add_cell(scene.store)
    before = route(scene.store, vm.vm_id)
    async with scene.store.transaction() as tx:
        container = await tx.container(vm.vm_id, LIVE)
        assert container is not None
        await tx.save_container(container.next_generation(), container)
    after = route(scene.store, vm.vm_id)
    assert after.route == before.route
    assert (before.status.state, after.status.reason) == (RouteState.SERVING, "CONTAINER_STARTING")


async def test_two_containers_of_a_vm_never_share_a_slot(scene: Scene) -> None:
    """The database itself refuses what would lead one container's requests to another."""
    vm = await add_cell(scene.store)
    with pytest.raises(Exception, match="UNIQUE"):
        async with scene.store.transaction() as tx:
            await tx.save_container(replace(make_container(vm.vm_id, "third"), ingress_slot=1), None)
    assert [container.name for container in scene.store.mirror.containers(vm.vm_id)] == ["sandbox-dev", LIVE]
