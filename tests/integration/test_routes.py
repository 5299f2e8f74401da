"""RouteService of a real hypervisor over simulated VMs, with somebody at its socket who takes what Envoy takes."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from cellmesh.api.common.v1 import container_pb2
from cellmesh.api.hypervisor.v1 import event_pb2, route_pb2, route_service_pb2, route_service_pb2_grpc, vm_pb2
from cellmesh.api.hypervisor.v1 import vm_service_pb2 as vms
from cellmesh.mesh.channel import unix_channel
from cellmesh.mesh.errors import MeshError
from simulator import Hub
from support.fake_envoy import FakeEnvoy, fake_envoy
from support.hollow_images import hollow_container, hollow_guest
from support.node import SECONDS, Node, node, short_directory

LIVE, DEV, SIDE = "sandbox-live", "sandbox-dev", "search"
SERVING, WAITING = route_pb2.ROUTE_STATE_SERVING, route_pb2.ROUTE_STATE_WAITING

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A node and its images."""

    it: Node
    image: str
    directory: Path

    @property
    def routes(self) -> route_service_pb2_grpc.RouteServiceAsyncStub:
        """Return the operator's stub of RouteService."""
        return route_service_pb2_grpc.RouteServiceStub(self.it.channel)

    @property
    def edge_socket(self) -> Path:
        """Return where the edge calls."""
        return self.it.run_dir / "edge" / "edge.sock"

    def socket_of(self, vm_id: str, container: str, *, epoch: int, generation: int) -> Path:
        """Return the socket by which the edge reaches one generation of a container."""
        return self.it.run_dir / "in" / vm_id.replace("-", "")[:12] / f"{container}.{epoch}.{generation}"

    async def cell(self, *names: str, **spec: object) -> vm_pb2.Vm:
        """Return a VM that runs, with containers of these names."""
        vm = await self.it.running(**spec)
        for name in names:
            await self.it.start_container(vm.vm_id, self.image, name=name)
        return vm

    async def get(self, vm_id: str, prefix: str = "/") -> route_pb2.Route:
        """Return a route."""
        request = route_service_pb2.GetRouteRequest(vm_id=vm_id, prefix=prefix)
        return (await self.routes.GetRoute(request)).route

    async def switch(self, vm_id: str, container: str, prefix: str = "/", **fields: Any) -> route_pb2.Route:
        """Switch a route and return it as it is served."""
        request = switch_of(vm_id, container, prefix, **fields)
        return (await self.routes.SwitchRoute(request)).route

    async def route_events(self, vm_id: str) -> list[event_pb2.Event]:
        """Return what the log has of a VM's routes."""
        kinds = {"route_switched", "route_refused"}
        return [event for event in await self.it.all_events(vm_id) if event.WhichOneof("payload") in kinds]


def switch_of(vm_id: str, container: str, prefix: str = "/", **fields: Any) -> route_service_pb2.SwitchRouteRequest:
    """Return a wish nobody has wished before."""
    target = route_pb2.RouteTarget(container_name=container, generation=fields.pop("generation", 0))
    request_id = fields.pop("request_id", str(uuid.uuid4()))
    return route_service_pb2.SwitchRouteRequest(
        request_id=request_id, vm_id=vm_id, prefix=prefix, target=target, **fields
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene() -> AsyncIterator[Scene]:
    """Run a node on simulated VMs."""
    with short_directory() as directory:
        images = directory / "state" / "images"
        hollow_guest(images)
        image = hollow_container(images)
        async with Hub(directory / "hub") as hub, node(directory, hub.binary) as it:
            yield Scene(it=it, image=image, directory=directory)


@pytest_asyncio.fixture(loop_scope="module")
async def envoy(scene: Scene) -> AsyncIterator[FakeEnvoy]:
    """Connect an Envoy to the node."""
    async with fake_envoy(scene.edge_socket) as connected:
        yield connected


async def test_a_new_vm_has_its_routes_and_nobody_in_them(scene: Scene) -> None:
    """They are there before it runs, wait for the VM, then for a container, and say so."""
    vm = await scene.it.create()
    live = await scene.get(vm.vm_id)
    assert (live.target.container_name, live.target.generation, live.revision) == (LIVE, 0, 1)
    assert (live.user_id, live.state) == (vm.user_id, WAITING)
    await scene.it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING)
    waiting = await scene.get(vm.vm_id, "/dev/")
    assert (waiting.state, waiting.reason) == (WAITING, "CONTAINER_NOT_FOUND")
    assert DEV in waiting.message


async def test_the_edge_is_told_of_each_container_as_it_comes_and_goes(scene: Scene, envoy: FakeEnvoy) -> None:
    """The socket of a generation while it runs; the activator's before, after, and for who never was."""
    vm = await scene.cell(LIVE, SIDE)
    live, dev, side = (f"{vm.user_id}/{slot}" for slot in ("live", "dev", f"_{SIDE}"))
    first = scene.socket_of(vm.vm_id, LIVE, epoch=1, generation=1)
    activator = scene.it.run_dir / "edge" / "activator.sock"
    second = scene.socket_of(vm.vm_id, SIDE, epoch=1, generation=1)
    # Whoever starts a container is not the one whom the edge answers.
    await envoy.until(lambda now: [now.get(name) for name in (live, dev, side)] == [first, activator, second])
    assert envoy.owners[live]["vm_id"] == vm.vm_id
    assert first.is_socket()
    await scene.it.start_container(vm.vm_id, scene.image, name=LIVE)
    await envoy.until(lambda now: now[live].name == f"{LIVE}.1.2")
    await scene.it.vms.StopVm(vms.StopVmRequest(request_id=str(uuid.uuid4()), vm_id=vm.vm_id))
    await envoy.until(lambda now: now[live] == now[dev] == now[side])
    await scene.it.vms.DeleteVm(vms.DeleteVmRequest(request_id=str(uuid.uuid4()), vm_id=vm.vm_id))
    await envoy.until(lambda now: not {live, dev, side} & now.keys())


async def test_a_switch_is_answered_once_the_edge_serves_it(scene: Scene, envoy: FakeEnvoy) -> None:
    """Dev becomes live and back; by the answer the edge leads there, and the log has both."""
    vm = await scene.cell(LIVE, DEV)
    cluster = f"{vm.user_id}/live"
    for number, (container, origin) in enumerate(((DEV, LIVE), (LIVE, DEV)), start=2):
        found = await scene.switch(vm.vm_id, container)
        assert envoy.serves[cluster] == scene.socket_of(vm.vm_id, container, epoch=1, generation=1)
        assert (found.state, found.epoch, found.generation, found.revision) == (SERVING, 1, 1, number)
        assert found == await scene.get(vm.vm_id)
        event = (await scene.route_events(vm.vm_id))[-1]
        assert (event.container_name, event.epoch, event.generation) == (container, 1, 1)
        switched = event.route_switched
        assert (switched.prefix, getattr(switched, "from").container_name) == ("/", origin)
        assert switched.to.container_name == container


async def test_a_route_to_one_generation_ends_with_it(scene: Scene, envoy: FakeEnvoy) -> None:
    """A pinned route never falls through to the next generation: it waits and says for what."""
    vm = await scene.cell(LIVE)
    assert (await scene.switch(vm.vm_id, LIVE, generation=1)).state == SERVING
    await scene.it.start_container(vm.vm_id, scene.image, name=LIVE)
    pinned = await scene.get(vm.vm_id)
    assert (pinned.state, pinned.reason) == (WAITING, "GENERATION_NOT_FOUND")
    await envoy.until(lambda now: now[f"{vm.user_id}/live"].name == "activator.sock")
    with pytest.raises(MeshError) as refused:
        await scene.switch(vm.vm_id, LIVE, generation=1)
    assert refused.value.reason == "GENERATION_NOT_FOUND"
    assert (await scene.switch(vm.vm_id, LIVE)).generation == 2


async def test_what_the_edge_refuses_is_undone_and_told(scene: Scene, envoy: FakeEnvoy) -> None:
    """The caller gets the edge's words, escaped; the route leads where it led, for the edge too."""
    vm = await scene.cell(LIVE, DEV)
    cluster, other = f"{vm.user_id}/live", f"{vm.user_id}/dev"
    # Of the other one too: told later, it would be refused as well.
    first = {name: scene.socket_of(vm.vm_id, name, epoch=1, generation=1) for name in (LIVE, DEV)}
    await envoy.until(lambda now: (now.get(cluster), now.get(other)) == (first[LIVE], first[DEV]))
    envoy.refuses = lambda _, path: "no such\x1b[31m socket" if path.name.startswith(DEV) else None
    request = switch_of(vm.vm_id, DEV)
    for _ in range(2):
        with pytest.raises(MeshError) as refused:
            await scene.routes.SwitchRoute(request)
        assert (refused.value.code.name, refused.value.reason) == ("FAILED_PRECONDITION", "ROUTE_REFUSED")
        assert "no such" in refused.value.message
        assert "\x1b" not in refused.value.message
    now = await scene.get(vm.vm_id)
    assert (now.target.container_name, now.state, now.revision) == (LIVE, SERVING, 3)
    assert envoy.serves[cluster].name == f"{LIVE}.1.1"
    *_, event = await scene.route_events(vm.vm_id)
    assert event.route_refused.target.container_name == DEV
    assert "no such" in event.route_refused.message


async def test_without_an_edge_a_switch_is_kept_for_the_next(scene: Scene) -> None:
    """The caller is told; an edge that comes later gets what was stored, and then the same request succeeds."""
    vm = await scene.cell(LIVE, DEV)
    request = switch_of(vm.vm_id, DEV)
    with pytest.raises(MeshError) as away:
        await _ask_alone(scene, request)
    assert away.value.reason == "EDGE_UNREACHABLE"
    assert (await scene.get(vm.vm_id)).target.container_name == DEV
    async with fake_envoy(scene.edge_socket) as envoy:
        await envoy.until(lambda now: now.get(f"{vm.user_id}/live", Path()).name == f"{DEV}.1.1")
        assert (await scene.routes.SwitchRoute(request)).route.revision == 2


async def test_routes_outlive_the_hypervisor(scene: Scene) -> None:
    """After a kill they lead where they led, and an edge that comes back misses none of them."""
    vm = await scene.cell(LIVE, DEV)
    async with fake_envoy(scene.edge_socket) as envoy:
        # A switch is refused while no edge is connected.
        await envoy.until(lambda now: f"{vm.user_id}/live" in now)
        await scene.switch(vm.vm_id, DEV)
    before = await scene.get(vm.vm_id)
    await scene.it.hang_up()
    await scene.it.stop(signal.SIGKILL)
    await scene.it.start()
    async with fake_envoy(scene.edge_socket) as envoy:
        await envoy.until(lambda now: now.get(f"{vm.user_id}/live", Path()).name == f"{DEV}.1.1")
    assert await scene.get(vm.vm_id) == before


async def test_a_list_has_every_route_page_by_page(scene: Scene) -> None:
    """By VM from the oldest, then by prefix; a token is good for its own list only."""
    first, second = await scene.cell(SIDE), await scene.cell()
    request = route_service_pb2.ListRoutesRequest()
    request.page.page_size = 2
    found: list[tuple[str, str]] = []
    while True:
        page = await scene.routes.ListRoutes(request)
        found += [(route.vm_id, route.prefix) for route in page.routes]
        if not page.next_page_token:
            break
        request.page.page_token = page.next_page_token
    ours = [route for route in found if route[0] in {first.vm_id, second.vm_id}]
    side = f"/_/{SIDE}/"
    assert ours == [(first.vm_id, prefix) for prefix in ("/", side, "/dev/")] + [
        (second.vm_id, prefix) for prefix in ("/", "/dev/")
    ]
    assert len(set(found)) == len(found)
    only = await scene.routes.ListRoutes(route_service_pb2.ListRoutesRequest(vm_id=first.vm_id))
    assert [route.prefix for route in only.routes] == ["/", side, "/dev/"]
    request.vm_id = first.vm_id
    with pytest.raises(MeshError) as strange:
        await scene.routes.ListRoutes(request)
    assert strange.value.reason == "INVALID_PAGE_TOKEN"


async def test_a_watch_tells_what_is_there_then_each_change(scene: Scene, envoy: FakeEnvoy) -> None:
    """First all, then one bookmark that says so; then containers, switches and the end, each once."""
    vm = await scene.cell(LIVE, DEV)
    async with _watching(scene, vm.vm_id) as told:
        first = [await anext(told) for _ in range(3)]
        assert [answer.route.prefix for answer in first[:2]] == ["/", "/dev/"]
        assert first[2].bookmark.caught_up
        switched = await scene.switch(vm.vm_id, DEV)
        assert (await anext(told)).route == switched
        await scene.it.start_container(vm.vm_id, scene.image, name=SIDE)
        side = await _until(told, lambda answer: answer.route.prefix == f"/_/{SIDE}/" and answer.route.state == SERVING)
        assert side.route.generation == 1
        await scene.it.vms.DeleteVm(vms.DeleteVmRequest(request_id=str(uuid.uuid4()), vm_id=vm.vm_id))
        removed = [(await _until(told, lambda answer: answer.HasField("removed"))).removed]
        removed += [(await anext(told)).removed for _ in range(2)]
        assert {route.prefix for route in removed} == {"/", "/dev/", f"/_/{SIDE}/"}
        assert all(
            route == route_pb2.Route(vm_id=vm.vm_id, user_id=vm.user_id, prefix=route.prefix) for route in removed
        )


async def test_a_request_starts_a_stopped_vm_and_is_told_what_it_waits_for(scene: Scene) -> None:
    """By the edge's own socket: stopped, starting, then served; the containers that were wanted are back."""
    vm = await scene.cell(LIVE)
    await scene.it.vms.StopVm(vms.StopVmRequest(request_id=str(uuid.uuid4()), vm_id=vm.vm_id))
    await scene.it.until(vm.vm_id, vm_pb2.VM_STATE_STOPPED)
    stopped = await scene.get(vm.vm_id)
    assert stopped.reason == "VM_STOPPED"
    request = route_service_pb2.ActivateRouteRequest(user_id=vm.user_id, prefix="/")
    async with unix_channel(scene.edge_socket, downstream="hypervisor") as channel:
        edge = route_service_pb2_grpc.RouteServiceStub(channel)
        waiting = await edge.ActivateRoute(request)
        assert waiting.route.state == WAITING
        assert waiting.HasField("retry_after")
        async with asyncio.timeout(SECONDS):
            while (answer := await edge.ActivateRoute(request)).route.state != SERVING:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # it is another process that changes it
        assert (answer.vm_state, answer.route.epoch) == (vm_pb2.VM_STATE_RUNNING, 2)
        assert not answer.HasField("retry_after")


async def test_a_vm_that_no_request_may_start_stays_stopped(scene: Scene) -> None:
    """Its policy is kept with it, and said in the answer."""
    vm = await scene.cell(LIVE, cold_start=vm_pb2.COLD_START_NEVER)
    assert (await scene.it.get(vm.vm_id)).spec.cold_start == vm_pb2.COLD_START_NEVER
    await scene.it.vms.StopVm(vms.StopVmRequest(request_id=str(uuid.uuid4()), vm_id=vm.vm_id))
    await scene.it.until(vm.vm_id, vm_pb2.VM_STATE_STOPPED)
    request = route_service_pb2.ActivateRouteRequest(user_id=vm.user_id, prefix="/")
    answer = await scene.routes.ActivateRoute(request)
    assert (answer.vm_state, answer.route.reason) == (vm_pb2.VM_STATE_STOPPED, "VM_STOPPED")
    assert not answer.HasField("retry_after")
    assert (await scene.it.get(vm.vm_id)).state == vm_pb2.VM_STATE_STOPPED


async def test_the_edge_may_do_nothing_but_activate(scene: Scene) -> None:
    """On its socket it reads no route, switches none, and finds no other service."""
    vm = await scene.cell()
    async with unix_channel(scene.edge_socket, downstream="hypervisor") as channel:
        edge = route_service_pb2_grpc.RouteServiceStub(channel)
        for call in (
            edge.GetRoute(route_service_pb2.GetRouteRequest(vm_id=vm.vm_id, prefix="/")),
            edge.ListRoutes(route_service_pb2.ListRoutesRequest()),
            edge.SwitchRoute(switch_of(vm.vm_id, LIVE)),
        ):
            with pytest.raises(MeshError) as refused:
                await call
            assert refused.value.reason == "CALLER_NOT_ALLOWED"
    async with grpc.aio.insecure_channel(f"unix:{scene.edge_socket}") as raw:
        stop = raw.unary_unary(
            "/cellmesh.api.hypervisor.v1.VmService/StopVm",
            request_serializer=vms.StopVmRequest.SerializeToString,
            response_deserializer=vms.StopVmResponse.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stop(vms.StopVmRequest(request_id=str(uuid.uuid4()), vm_id=vm.vm_id))
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_traffic_needs_an_edge(scene: Scene) -> None:
    """While none counts, the watch ends with what to do."""
    watch = scene.routes.WatchTraffic(route_service_pb2.WatchTrafficRequest(), timeout=SECONDS)
    with pytest.raises(MeshError) as away:
        await anext(aiter(watch))
    assert away.value.reason == "EDGE_UNREACHABLE"


async def test_a_node_whose_edge_cannot_be_does_not_start(scene: Scene) -> None:
    """It says what is wrong in a sentence and exits with 78; nothing is left for an Envoy to start with."""
    settings = {"edge_listen": "192.0.2.1:80", "edge_tls": False}
    other = Node(scene.directory / "other", scene.it.settings["vmm"], **settings)
    other.log = scene.directory / "other.log"
    other.process = await other.spawn()
    assert await other.ended() == 78
    assert "TLS only" in other.log.read_text()
    assert list((other.run_dir / "edge").iterdir()) == []


async def test_what_an_envoy_starts_with_is_there_when_the_node_is_ready(scene: Scene) -> None:
    """Before anybody can be told to start one; and a node that stops leaves it for the Envoy that goes on."""
    other = Node(scene.directory / "another", scene.it.settings["vmm"], edge_listen="127.0.0.1:8443")
    other.run_dir.parent.mkdir()
    try:
        await other.start()
        files = {path.name for path in (other.run_dir / "edge").iterdir()}
        assert {"certificate.json", "edge.sock", "envoy.json"} <= files
        assert await other.stop() == 0
        assert {"certificate.json", "envoy.json"} <= {path.name for path in (other.run_dir / "edge").iterdir()}
    finally:
        await other.end_everything()


async def test_the_port_of_a_container_is_kept_and_has_its_default(scene: Scene) -> None:
    """What was asked for is what is stored; nothing asked for is 8080."""
    vm = await scene.cell()
    usual = await scene.it.start_container(vm.vm_id, scene.image, name=LIVE)
    own = await scene.it.start_container(vm.vm_id, scene.image, name=DEV, http_port=3000)
    assert (usual.spec.http_port, own.spec.http_port) == (8080, 3000)
    assert usual.status.state == container_pb2.CONTAINER_STATE_RUNNING


@asynccontextmanager
async def _watching(scene: Scene, vm_id: str) -> AsyncIterator[AsyncIterator[route_service_pb2.WatchRoutesResponse]]:
    watch = scene.routes.WatchRoutes(route_service_pb2.WatchRoutesRequest(vm_id=vm_id), timeout=2 * SECONDS)
    try:
        async with asyncio.timeout(2 * SECONDS):
            yield aiter(watch)
    finally:
        watch.cancel()


async def _until(
    told: AsyncIterator[route_service_pb2.WatchRoutesResponse],
    wanted: Callable[[route_service_pb2.WatchRoutesResponse], bool],
) -> route_service_pb2.WatchRoutesResponse:
    async for answer in told:
        if wanted(answer):
            return answer
    raise AssertionError("the watch ended")


async def _ask_alone(scene: Scene, request: route_service_pb2.SwitchRouteRequest) -> None:
    """Switch on a connection of its own: an edge that is away must not make us doubt the hypervisor."""
    async with unix_channel(scene.it.run_dir / "operator.sock", downstream="hypervisor") as channel:
        await route_service_pb2_grpc.RouteServiceStub(channel).SwitchRoute(request)
