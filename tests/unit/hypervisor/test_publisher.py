"""What the edge is told, as the store changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from cellmesh.hypervisor.domain.container import Container, ContainerState, ContainerStatus
from cellmesh.hypervisor.domain.errors import EdgeUnreachable, RouteRefused
from cellmesh.hypervisor.domain.event import RouteSwitched
from cellmesh.hypervisor.domain.route import RouteTarget
from cellmesh.hypervisor.domain.vm import DesiredState, Vm, VmState
from cellmesh.hypervisor.edge import discovery
from cellmesh.hypervisor.edge.discovery import Discovery
from cellmesh.hypervisor.edge.endpoint import Endpoint, Endpoints
from cellmesh.hypervisor.edge.publisher import Publisher
from cellmesh.hypervisor.store import Store
from support.routes import DEV, LIVE, RUNS, add_cell

pytestmark = pytest.mark.asyncio
ACTIVATOR = Path("/run/edge/activator.sock")
SOON = timedelta(seconds=30)


class Told(Discovery):
    """A discovery that notes what it is told, and whose Envoys answer as a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.puts: list[Endpoints] = []
        self.now: dict[str, Endpoint] = {}
        self.asked: list[tuple[str, Path | None]] = []
        self.answer: Exception | None = None

    def put(self, endpoints: Endpoints) -> int:
        """Note it."""
        self.puts.append(endpoints)
        for name, endpoint in endpoints.items():
            if endpoint is None:
                del self.now[name]
            else:
                self.now[name] = endpoint
        return super().put(endpoints)

    async def served(self, name: str, version: int, *, timeout: float) -> None:  # noqa: ASYNC109  # as it is declared
        """Note what is desired at the moment of the question, and answer."""
        assert version > 0
        assert timeout > 0
        self.asked.append((name, self.now[name].path if name in self.now else None))
        if self.answer is not None:
            raise self.answer


@pytest.fixture
def told() -> Told:
    """Give a discovery of which no Envoy has asked anything yet."""
    return Told()


@pytest.fixture
def cuts() -> list[tuple[str, str, int]]:
    """Give where it is noted whose connections were cut."""
    return []


@pytest_asyncio.fixture
async def publisher(store: Store, told: Told, cuts: list[tuple[str, str, int]]) -> AsyncIterator[Publisher]:
    """Give a publisher that runs, over a store without VMs."""

    async def cut(vm_id: str, container: str, generation: int) -> None:
        cuts.append((vm_id, container, generation))

    it = Publisher(store=store, discovery=told, socket=socket_of, activator=ACTIVATOR, cut=cut)
    it.publish_all()
    running = asyncio.create_task(it.run())
    yield it
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def socket_of(vm_id: str, name: str) -> Path:
    """Return where a listener's socket lies."""
    return Path("/run/in") / vm_id / name


async def until(told: Told, name: str, path: Path | None) -> None:
    """Wait until a cluster leads somewhere, None: until it is gone."""
    async with asyncio.timeout(30):
        while (told.now[name].path if name in told.now else None) != path:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def save(store: Store, container: Container, **fields: object) -> Container:
    """Store a change of a container."""
    async with store.transaction() as tx:
        return await tx.save_container(replace(container, **fields), container)  # type: ignore[arg-type]


async def switch(store: Store, vm: Vm, name: str, generation: int = 0) -> None:
    """Let `/` lead to another container."""
    target = RouteTarget(container=name, generation=generation)
    async with store.transaction() as tx:
        before = (await tx.routes(vm.vm_id))[0]
        event = RouteSwitched(prefix="/", origin=before.target, target=target)
        await tx.switch_route(replace(before, target=target), event, epoch=vm.epoch, generation=7)


async def test_everything_is_told_in_one_piece_before_anybody_asks(store: Store, told: Told) -> None:
    """A hypervisor that starts says all it knows at once: nothing an Envoy serves is missing from its first word."""
    vms = [await add_cell(store) for _ in range(3)]
    Publisher(
        store=store, discovery=told, socket=socket_of, activator=ACTIVATOR, cut=lambda *_: asyncio.sleep(0)
    ).publish_all()
    assert len(told.puts) == 1
    assert told.now == {
        f"{vm.user_id}/{slot}": Endpoint(
            path=socket_of(vm.vm_id, f"{name}.3.{generation}"),
            vm_id=vm.vm_id,
            container=name,
            epoch=3,
            generation=generation,
        )
        for vm in vms
        for slot, name, generation in (("live", LIVE, 2), ("dev", DEV, 7))
    }


async def test_a_node_without_vms_says_so(publisher: Publisher, told: Told) -> None:
    """Nothing is a whole too: an Envoy that asks is not left waiting."""
    assert told.now == {}
    assert told.primed


async def test_a_container_that_ends_and_comes_back_is_followed(publisher: Publisher, store: Store, told: Told) -> None:
    """The activator answers while nobody else can; then the socket of the new generation does."""
    vm = await add_cell(store)
    name, live = f"{vm.user_id}/live", store.mirror.containers(vm.vm_id)[1]
    await until(told, name, socket_of(vm.vm_id, f"{LIVE}.3.2"))
    waiting = await save(store, live, generation=3, epoch=0, status=ContainerStatus())
    await until(told, name, ACTIVATOR)
    assert told.now[name].vm_id == ""
    starting = await save(store, waiting, epoch=3, status=ContainerStatus(state=ContainerState.STARTING))
    assert told.now[name].path == ACTIVATOR
    await save(store, starting, status=RUNS)
    await until(told, name, socket_of(vm.vm_id, f"{LIVE}.3.3"))


async def test_only_what_changed_is_told(publisher: Publisher, store: Store, told: Told) -> None:
    """A change of one VM is a word about that VM, however many there are."""
    vms = [await add_cell(store) for _ in range(5)]
    await until(told, f"{vms[-1].user_id}/dev", socket_of(vms[-1].vm_id, f"{DEV}.3.7"))
    told.puts.clear()
    async with store.transaction() as tx:
        stopping = replace(vms[2], desired=DesiredState.STOPPED)
        await tx.save_vm(stopping, vms[2])
    await until(told, f"{vms[2].user_id}/live", ACTIVATOR)
    assert {name for put in told.puts for name in put} == {f"{vms[2].user_id}/live", f"{vms[2].user_id}/dev"}


async def test_a_vm_that_is_deleted_takes_its_clusters_with_it(publisher: Publisher, store: Store, told: Told) -> None:
    """The user's next VM takes them over: the late end of the one before costs it nothing."""
    vm = await add_cell(store)
    name = f"{vm.user_id}/live"
    await until(told, name, socket_of(vm.vm_id, f"{LIVE}.3.2"))
    async with store.transaction() as tx:
        going = await tx.save_vm(vm.move(VmState.DELETING), vm)
        await tx.save_vm(going.move(VmState.DELETED), going)
    await until(told, name, None)
    assert told.now == {}
    again = await add_cell(store, user_id=vm.user_id)
    await until(told, name, socket_of(again.vm_id, f"{LIVE}.3.2"))
    store.changes.notify({vm.vm_id})
    await publisher.settled(vm.vm_id)
    assert told.now[name].vm_id == again.vm_id


async def test_a_switch_is_told_before_it_is_asked_about(publisher: Publisher, store: Store, told: Told) -> None:
    """Whoever waits for a switch does not wait for a task's turn: the question finds the new target in place."""
    vm = await add_cell(store)
    await switch(store, vm, DEV)
    await publisher.served(vm.vm_id, "/", within=SOON)
    assert told.asked == [(f"{vm.user_id}/live", socket_of(vm.vm_id, f"{DEV}.3.7"))]


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (discovery.EdgeRefused("no such thing"), RouteRefused, "no such thing"),
        (discovery.EdgeUnreachable("No edge is connected."), EdgeUnreachable, "takes effect"),
    ],
)
async def test_what_the_edge_says_is_passed_on(
    publisher: Publisher, store: Store, told: Told, answer: Exception, error: type[Exception], said: str
) -> None:
    """A refusal and an absence are told apart, each with what to do; whoever stops something is held up by neither."""
    vm = await add_cell(store)
    told.answer = answer
    with pytest.raises(error, match=said):
        await publisher.served(vm.vm_id, "/", within=SOON)
    await publisher.settled(vm.vm_id)


async def test_settling_asks_for_every_route_of_a_vm(publisher: Publisher, store: Store, told: Told) -> None:
    """Before a container is told to end, every route to it leads elsewhere."""
    vm = await add_cell(store)
    async with store.transaction() as tx:
        await tx.save_vm(replace(vm, desired=DesiredState.STOPPED), vm)
    await publisher.settled(vm.vm_id)
    assert sorted(told.asked) == [(f"{vm.user_id}/dev", ACTIVATOR), (f"{vm.user_id}/live", ACTIVATOR)]


async def test_draining_cuts_one_generation(
    publisher: Publisher, store: Store, cuts: list[tuple[str, str, int]]
) -> None:
    """A drain is passed on to the bridge of the VM."""
    vm = await add_cell(store)
    await publisher.drain(vm.vm_id, LIVE, 2)
    assert cuts == [(vm.vm_id, LIVE, 2)]
