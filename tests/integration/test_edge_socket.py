"""The socket on which a hypervisor serves its edge: what an Envoy is told first, and what else it may ask."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from cellmesh.api.hypervisor.v1 import route_pb2, route_service_pb2, route_service_pb2_grpc, vm_service_pb2_grpc
from cellmesh.api.hypervisor.v1.vm_service_pb2 import ListVmsRequest
from cellmesh.envoy.discovery.v3 import discovery_pb2, discovery_pb2_grpc
from cellmesh.hypervisor.domain.errors import NodeShuttingDown
from cellmesh.hypervisor.edge.resources import CLUSTER
from simulator.hub import Hub
from support.hollow_images import hollow_container, hollow_guest
from support.node import SECONDS, Node, node, short_directory

pytestmark = pytest.mark.asyncio
EDGE_USER = 599_999
_Call: TypeAlias = (
    "grpc.aio.StreamStreamCall[discovery_pb2.DeltaDiscoveryRequest, discovery_pb2.DeltaDiscoveryResponse]"
)


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[Hub]:
    """Give a hub of simulated VMs, in a directory that also holds hollow images for a node."""
    with short_directory() as directory:
        hollow_guest(directory / "state" / "images")
        async with Hub(directory / "hub") as it:
            yield it


@pytest_asyncio.fixture
async def it(hub: Hub) -> AsyncIterator[Node]:
    """Give a node whose hypervisor serves."""
    async with node(hub.directory.parent, hub.binary) as running:
        yield running


@pytest.fixture
def image(hub: Hub) -> str:
    """Give a container image."""
    return hollow_container(hub.directory.parent / "state" / "images")


@asynccontextmanager
async def channel(it: Node) -> AsyncIterator[grpc.aio.Channel]:
    """Connect as the edge does."""
    async with grpc.aio.insecure_channel(f"unix:{it.run_dir / 'edge' / 'edge.sock'}") as opened:
        yield opened


async def asked(channel: grpc.aio.Channel) -> _Call:
    """Open a stream and ask for all clusters."""
    call: _Call = discovery_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources()
    await call.write(discovery_pb2.DeltaDiscoveryRequest(type_url=CLUSTER, resource_names_subscribe=["*"]))
    return call


async def first(call: _Call) -> set[str]:
    """Return the names of the first answer."""
    async with asyncio.timeout(SECONDS):
        answer = await call.read()
    assert isinstance(answer, discovery_pb2.DeltaDiscoveryResponse)
    return {resource.name for resource in answer.resources}


async def test_a_restarted_hypervisor_says_everything_at_once(it: Node, image: str) -> None:
    """The first answer to an Envoy has every route of every VM, whether its VM was adopted by then or not."""
    vms = [await it.running() for _ in range(3)]
    await it.start_container(vms[0].vm_id, image, "sidecar")
    names = {f"{vm.user_id}/{slot}" for vm in vms for slot in ("live", "dev")} | {f"{vms[0].user_id}/_sidecar"}
    async with channel(it) as before:
        assert await first(await asked(before)) == names
    await it.stop(signal.SIGKILL)
    await it.start()
    async with channel(it) as after:
        assert await first(await asked(after)) == names


async def test_a_stopping_hypervisor_lets_its_envoy_go(it: Node) -> None:
    """The stream ends with a word, at once: it is not waited for until the time for open calls is up."""
    vm = await it.running()
    async with channel(it) as opened:
        call = await asked(opened)
        assert await first(call) == {f"{vm.user_id}/live", f"{vm.user_id}/dev"}
        stopping = asyncio.create_task(it.stop())
        async with asyncio.timeout(SECONDS):
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
        # A connection that is cut says so in other words.
        assert await call.details() == NodeShuttingDown().message
        assert await stopping == 0


async def test_the_edge_may_not_do_what_others_may(it: Node) -> None:
    """On its socket there are no VMs to list, and no route to switch."""
    vm = await it.running()
    async with channel(it) as opened:
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await vm_service_pb2_grpc.VmServiceStub(opened).ListVms(ListVmsRequest())
        assert missing.value.code() is grpc.StatusCode.UNIMPLEMENTED
        request = route_service_pb2.SwitchRouteRequest(
            request_id=str(uuid.uuid4()),
            vm_id=vm.vm_id,
            prefix="/",
            target=route_pb2.RouteTarget(container_name="app"),
        )
        with pytest.raises(grpc.aio.AioRpcError) as denied:
            await route_service_pb2_grpc.RouteServiceStub(opened).SwitchRoute(request)
        assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.skipif(os.getuid() != 0, reason="a group of its own needs root")
async def test_the_edge_may_add_to_its_directory_and_replace_nothing(it: Node) -> None:
    """The directory is the edge's to put sockets in; the hypervisor's own is not the edge's to move."""

    def mode(path: Path) -> tuple[int, int, int]:
        found = path.stat()
        return found.st_uid, found.st_gid, found.st_mode & 0o7777

    directory = it.run_dir / "edge"
    assert mode(directory) == (0, EDGE_USER, 0o1770)
    assert mode(directory / "edge.sock") == (0, EDGE_USER, 0o660)
