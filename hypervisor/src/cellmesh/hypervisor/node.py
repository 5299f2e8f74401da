"""Wires one node by hand: store, then lifecycle, then reconciler, then servicers, then servers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta

from cellmesh.api.hypervisor.v1 import (
    container_service_pb2_grpc,
    event_service_pb2_grpc,
    node_service_pb2_grpc,
    route_service_pb2_grpc,
    vm_service_pb2_grpc,
)
from cellmesh.hypervisor import failpoints
from cellmesh.hypervisor.domain.errors import EdgeUnreachable
from cellmesh.hypervisor.guest.client import GuestClient
from cellmesh.hypervisor.guest.listeners import Listeners
from cellmesh.hypervisor.lifecycle.admission import Admission
from cellmesh.hypervisor.lifecycle.agents import Agents
from cellmesh.hypervisor.lifecycle.attempts import Attempts
from cellmesh.hypervisor.lifecycle.containers import Containers
from cellmesh.hypervisor.lifecycle.log import Log
from cellmesh.hypervisor.lifecycle.node import Nodes
from cellmesh.hypervisor.lifecycle.routes import Routes
from cellmesh.hypervisor.lifecycle.sessions import Sessions
from cellmesh.hypervisor.lifecycle.switches import Switches
from cellmesh.hypervisor.lifecycle.vms import Vms
from cellmesh.hypervisor.reconciler import Reconciler, Timing, World
from cellmesh.hypervisor.reconciler.probes import probes
from cellmesh.hypervisor.servicers.container_service import ContainerServicer
from cellmesh.hypervisor.servicers.event_service import EventServicer
from cellmesh.hypervisor.servicers.node_service import NodeServicer
from cellmesh.hypervisor.servicers.route_service import RouteServicer
from cellmesh.hypervisor.servicers.route_watches import CountTraffic, RouteWatches, Traffic
from cellmesh.hypervisor.servicers.shutdown import Shutdown
from cellmesh.hypervisor.servicers.vm_service import VmServicer
from cellmesh.hypervisor.servicers.watches import Watches
from cellmesh.hypervisor.settings import HypervisorSettings
from cellmesh.hypervisor.store import Store
from cellmesh.hypervisor.store.lock import StateLock
from cellmesh.hypervisor.vmm import Vmm
from cellmesh.image import ImageStore
from cellmesh.mesh import identity, telemetry
from cellmesh.mesh.pages import PageTokens
from cellmesh.mesh.server import MeshServer, Register
from cellmesh.mesh.tokens import TokenSigner

SERVICE = "hypervisor"
_DATABASE = "hypervisor.db"


@asynccontextmanager
async def serving(settings: HypervisorSettings) -> AsyncIterator[None]:
    """Be the node's hypervisor inside; VMs that run when it ends go on running.

    Raises StateInUse if another hypervisor works on this state, SchemaTooNew, OSError if a socket cannot be had.
    """
    settings.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        stack.enter_context(StateLock(settings.state_dir))
        store = await stack.enter_async_context(Store.opened(settings.state_dir / _DATABASE, trace_id=_causing_trace))
        world, listeners, guests = _world(settings, store)
        stack.push_async_callback(guests.close)
        stack.push_async_callback(listeners.close_all)
        log, reconciler = await Log.opened(store), Reconciler(world)
        async with store.reading() as reading:
            signer = TokenSigner((await reading.node()).token_key)
        shutdown, edge = Shutdown(), _NoEdge()
        switches = Switches(store=store, edge=edge, failpoint=failpoints.reach)
        vms = _vms(world, reconciler)
        routes = _route_service(world, vms, switches, log, signer, shutdown, traffic=edge.traffic)
        server = MeshServer([*_services(world, guests, vms, log, signer, shutdown), routes])
        _listen(settings, server)
        await stack.enter_async_context(_running(log, reconciler, switches))
        await server.start()
        try:
            yield
        finally:
            await shutdown.begin()
            await server.stop(settings.stop_grace.total_seconds())


def _world(settings: HypervisorSettings, store: Store) -> tuple[World, Listeners, GuestClient]:
    """Return what reconcilers act on, and both ends of the talk with guests."""
    vmm = Vmm(
        binary=settings.vmm,
        run_dir=settings.run_dir,
        state_dir=settings.state_dir,
        uid_base=settings.first_uid,
        failpoint=failpoints.reach,
    )
    sessions = Sessions()
    agents = Agents(
        store=store,
        sessions=sessions,
        heartbeat_interval=settings.heartbeat_interval,
        failpoint=failpoints.reach,
    )
    listeners = Listeners(agents, socket=vmm.hello_socket, own=vmm.own)
    guests = GuestClient(vmm.agent_socket)
    world = World(
        store=store,
        vmm=vmm,
        guests=guests,
        sockets=listeners,
        images=ImageStore(settings.state_dir / "images"),
        sessions=sessions,
        attempts=Attempts(store.changes),
        admission=Admission(max_vms=settings.max_vms, memory_capacity_bytes=settings.memory_to_promise),
        timing=Timing(boot_timeout=settings.boot_timeout, heartbeat_interval=settings.heartbeat_interval),
        failpoint=failpoints.reach,
    )
    return world, listeners, guests


def _vms(world: World, reconciler: Reconciler) -> Vms:
    return Vms(
        store=world.store,
        images=world.images,
        admission=world.admission,
        follow=reconciler.follow,
        failpoint=failpoints.reach,
    )


class _NoEdge:
    """Stands where the publisher will: nobody serves a route yet."""

    async def served(self, vm_id: str, prefix: str, *, within: timedelta) -> None:
        """Say that nobody does."""
        del within
        raise EdgeUnreachable(f"No edge is connected; route {prefix} of VM {vm_id} takes effect when one is.")

    async def drain(self, vm_id: str, container: str, generation: int) -> None:
        """Close nothing."""

    async def traffic(self) -> Mapping[str, Traffic]:
        """Say that nobody counts."""
        raise EdgeUnreachable("No edge is connected; start it, then watch again.")


def _route_service(
    world: World,
    vms: Vms,
    switches: Switches,
    log: Log,
    signer: TokenSigner,
    shutdown: Shutdown,
    *,
    traffic: CountTraffic,
) -> Register:
    """Return the one service that the edge may call too."""
    watches = RouteWatches(log, world.store.mirror, traffic=traffic, shutdown=shutdown)
    routes, pages = Routes(store=world.store, vms=vms), PageTokens(signer)
    servicer = RouteServicer(routes, switches, watches=watches, pages=pages, shutdown=shutdown)
    return functools.partial(route_service_pb2_grpc.add_RouteServiceServicer_to_server, servicer)


def _services(
    world: World, guests: GuestClient, vms: Vms, log: Log, signer: TokenSigner, shutdown: Shutdown
) -> list[Register]:
    """Return the services for operators and services, ready to be added to servers."""
    watches, pages = Watches(log, signer, shutdown=shutdown), PageTokens(signer)
    containers = Containers(store=world.store, images=world.images, attempts=world.attempts)
    nodes = Nodes(
        store=world.store,
        images=world.images,
        admission=world.admission,
        vmm_version=world.vmm.version,
        warnings=world.vmm.warnings(),
        start_time=datetime.now(UTC),
    )
    return [
        functools.partial(
            vm_service_pb2_grpc.add_VmServiceServicer_to_server,
            VmServicer(vms, watches=watches, pages=pages, probes=probes(world, guests.claims)),
        ),
        functools.partial(
            container_service_pb2_grpc.add_ContainerServiceServicer_to_server,
            ContainerServicer(containers, guests, shutdown=shutdown),
        ),
        functools.partial(
            event_service_pb2_grpc.add_EventServiceServicer_to_server, EventServicer(log, watches=watches, pages=pages)
        ),
        functools.partial(node_service_pb2_grpc.add_NodeServiceServicer_to_server, NodeServicer(nodes)),
    ]


def _listen(settings: HypervisorSettings, server: MeshServer) -> None:
    server.add_operator_socket(settings.operator_socket)
    if settings.listen:
        # Certificates cost memory that a node without other services need not pay.
        from cellmesh.mesh.authority import LocalAuthority, LocalIdentity

        authority = LocalAuthority(settings.state_dir / "pki", trust_domain=settings.trust_domain)
        server.add_mtls(settings.listen, LocalIdentity(authority, SERVICE))


@asynccontextmanager
async def _running(log: Log, reconciler: Reconciler, switches: Switches) -> AsyncIterator[None]:
    """Keep the VMs, tell their watchers and switch their routes inside."""
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        owned = [
            tasks.create_task(log.relay(), name="relay"),
            tasks.create_task(reconciler.run(ready), name="reconciler"),
            tasks.create_task(switches.run(), name="switches"),
        ]
        await ready.wait()
        try:
            yield
        finally:
            for task in owned:
                task.cancel()


def _causing_trace() -> str:
    """Return the trace of the call that is being served, or nothing outside of one."""
    return telemetry.trace_id() if identity.caller() is not None else ""
