"""Wires one node by hand: store, then lifecycle, then reconciler, then servicers, then servers."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from cellmesh.api.hypervisor.v1 import (
    container_service_pb2_grpc,
    event_service_pb2_grpc,
    node_service_pb2_grpc,
    route_service_pb2_grpc,
    vm_service_pb2_grpc,
)
from cellmesh.envoy.discovery.v3 import discovery_pb2_grpc
from cellmesh.hypervisor import failpoints
from cellmesh.hypervisor.domain.errors import EdgeUnreachable, NodeShuttingDown
from cellmesh.hypervisor.domain.event import Entry
from cellmesh.hypervisor.edge.admin import EdgeAway, EnvoyAdmin
from cellmesh.hypervisor.edge.discovery import Discovery, DiscoveryServicer
from cellmesh.hypervisor.edge.probe import WorkerProbe
from cellmesh.hypervisor.edge.publisher import Publisher
from cellmesh.hypervisor.edge.upkeep import EdgeUpkeep
from cellmesh.hypervisor.guest.client import GuestClient
from cellmesh.hypervisor.guest.listeners import Listeners
from cellmesh.hypervisor.lifecycle.admission import Admission
from cellmesh.hypervisor.lifecycle.agents import Agents
from cellmesh.hypervisor.lifecycle.attempts import Attempts
from cellmesh.hypervisor.lifecycle.containers import Containers
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
from cellmesh.hypervisor.servicers.vm_service import VmServicer
from cellmesh.hypervisor.servicers.watches import Watches
from cellmesh.hypervisor.settings import HypervisorSettings
from cellmesh.hypervisor.store import Store
from cellmesh.hypervisor.store.transaction import entry
from cellmesh.hypervisor.vmm import Handle, Vmm, ingress_name
from cellmesh.hypervisor.vmm.layout import make_traversable
from cellmesh.image import ImageStore
from cellmesh.mesh import identity, telemetry
from cellmesh.mesh.pages import PageTokens
from cellmesh.mesh.server import MeshServer, Register
from cellmesh.mesh.tokens import TokenSigner
from cellmesh.service.audit.callers import calling
from cellmesh.service.audit.log import AuditLog
from cellmesh.service.journal import Journal
from cellmesh.service.shutdown import Shutdown
from cellmesh.service.state_lock import StateLock

SERVICE = "hypervisor"
Keep = Callable[[], Coroutine[Any, Any, None]]
"""Keeps something in order until cancelled."""
_DATABASE = "hypervisor.db"
# A guest's connection ends after more silence than its boot: what a busy host was late to read is no silence.
_SILENT_HEARTBEATS = 6
_LEAST_SILENCE = 30.0
_EDGE_SOCKET = "edge.sock"
_ACTIVATOR = "activator.sock"
_ADMIN_SOCKET = "admin.sock"
_PROBE_SOCKET = "probe.sock"


@asynccontextmanager
async def serving(settings: HypervisorSettings) -> AsyncIterator[None]:
    """Be the node's hypervisor inside; VMs that run when it ends go on running.

    Raises StateInUse if another hypervisor works on this state, SchemaTooNew, EdgeMisconfigured, OSError if a socket
    cannot be had.
    """
    make_traversable(settings.run_dir)
    async with AsyncExitStack() as stack:
        stack.enter_context(StateLock(settings.state_dir, SERVICE))
        store = await stack.enter_async_context(
            Store.opened(settings.state_dir / _DATABASE, trace_id=_causing_trace, who=calling)
        )
        admin = EnvoyAdmin(settings.edge_dir / _ADMIN_SOCKET)
        discovery, keepers = await _edge(settings, admin, stack)
        world, listeners, guests, publisher = _world(settings, store, discovery)
        stack.push_async_callback(guests.close)
        stack.push_async_callback(listeners.close_all)
        journal, reconciler = await Journal.opened(store, entry), Reconciler(world)
        async with store.reading() as reading:
            signer = TokenSigner(await reading.token_key())
        shutdown = Shutdown(NodeShuttingDown)
        audit = await stack.enter_async_context(
            AuditLog.opened(store, settings.state_dir / "audit", signer=signer, shutdown=shutdown)
        )
        switches = Switches(store=store, edge=publisher, failpoint=failpoints.reach)
        vms = _vms(world, reconciler)
        routes = _route_service(
            world, vms, switches, journal, signer, shutdown, traffic=functools.partial(_traffic, admin)
        )
        services = [*_services(world, guests, vms, journal, signer, shutdown), routes, audit.register]
        server = MeshServer(services, refused=audit.refusals.note)
        _listen(settings, server)
        # An Envoy that has served while we were away must find every route here when it asks.
        publisher.publish_all()
        _listen_to_edge(settings, server, routes, DiscoveryServicer(discovery, ends=shutdown.ends))
        await stack.enter_async_context(
            _running(journal, reconciler, [publisher.run, switches.run, audit.run, *keepers])
        )
        await server.start()
        try:
            yield
        finally:
            await shutdown.begin()
            await server.stop(settings.stop_grace.total_seconds())


async def _edge(
    settings: HypervisorSettings, admin: EnvoyAdmin, stack: AsyncExitStack
) -> tuple[Discovery, Sequence[Keep]]:
    """Write what an Envoy starts with; return what tells it of clusters, and what keeps its files."""
    settings.edge_dir.mkdir(mode=0o750, exist_ok=True)
    if settings.edge_group is not None:
        os.chown(settings.edge_dir, -1, settings.edge_group)
        # Sticky: what we put there they may not replace.
        settings.edge_dir.chmod(0o1770)
    if not settings.edge_listen:
        return Discovery(settings.edge_route_limits), []
    upkeep, probe = EdgeUpkeep(settings, admin), WorkerProbe(settings.edge_dir / _PROBE_SOCKET, admin)
    await upkeep.prepare()
    stack.callback(probe.close)
    return Discovery(settings.edge_route_limits, proof=probe), [upkeep.run]


def _world(
    settings: HypervisorSettings, store: Store, discovery: Discovery
) -> tuple[World, Listeners, GuestClient, Publisher]:
    """Return what reconcilers act on, both ends of the talk with guests, and what tells the edge of them."""
    vmm = Vmm(
        binary=settings.vmm,
        run_dir=settings.run_dir,
        state_dir=settings.state_dir,
        uid_base=settings.first_uid,
        edge_gid=settings.edge_group,
        failpoint=failpoints.reach,
    )
    handles: dict[str, Handle] = {}

    async def cut(vm_id: str, container: str, generation: int) -> None:
        if (handle := handles.get(vm_id)) is not None:
            name = ingress_name(container, epoch=handle.epoch, generation=generation)
            await vmm.cut_ingress(handle, name)

    publisher = Publisher(
        store=store,
        discovery=discovery,
        socket=vmm.ingress_socket,
        activator=settings.edge_dir / _ACTIVATOR,
        cut=cut,
    )
    sessions = Sessions()
    agents = Agents(
        store=store,
        sessions=sessions,
        heartbeat_interval=settings.heartbeat_interval,
        failpoint=failpoints.reach,
    )
    listeners = Listeners(
        agents,
        socket=vmm.hello_socket,
        own=vmm.own,
        inner=settings.run_dir / "hello",
        silence=max(_SILENT_HEARTBEATS * settings.heartbeat_interval.total_seconds(), _LEAST_SILENCE),
    )
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
        edge=publisher,
        handles=handles,
    )
    return world, listeners, guests, publisher


def _vms(world: World, reconciler: Reconciler) -> Vms:
    return Vms(
        store=world.store,
        images=world.images,
        admission=world.admission,
        follow=reconciler.follow,
        failpoint=failpoints.reach,
    )


async def _traffic(admin: EnvoyAdmin) -> Mapping[str, Traffic]:
    """Return what the edge counted. Raises EdgeUnreachable."""
    try:
        return await admin.traffic()
    except EdgeAway as error:
        raise EdgeUnreachable(f"{error} Start the edge, then watch again.") from error


def _route_service(
    world: World,
    vms: Vms,
    switches: Switches,
    journal: Journal[Entry],
    signer: TokenSigner,
    shutdown: Shutdown,
    *,
    traffic: CountTraffic,
) -> Register:
    """Return the one service that the edge may call too."""
    watches = RouteWatches(journal, world.store.mirror, traffic=traffic, shutdown=shutdown)
    routes, pages = Routes(store=world.store, vms=vms), PageTokens(signer)
    servicer = RouteServicer(routes, switches, watches=watches, pages=pages, shutdown=shutdown)
    return functools.partial(route_service_pb2_grpc.add_RouteServiceServicer_to_server, servicer)


def _services(
    world: World,
    guests: GuestClient,
    vms: Vms,
    journal: Journal[Entry],
    signer: TokenSigner,
    shutdown: Shutdown,
) -> list[Register]:
    """Return the services for operators and services, ready to be added to servers."""
    watches, pages = Watches(world.store, journal, signer, shutdown=shutdown), PageTokens(signer)
    containers = Containers(
        store=world.store,
        images=world.images,
        attempts=world.attempts,
        guests=guests,
        failpoint=failpoints.reach,
    )
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
            event_service_pb2_grpc.add_EventServiceServicer_to_server,
            EventServicer(world.store, watches=watches, pages=pages),
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


def _listen_to_edge(
    settings: HypervisorSettings, server: MeshServer, routes: Register, discovery: DiscoveryServicer
) -> None:
    """Serve Envoy and the activator on a socket of their own, in a directory where both may put theirs."""
    ask = functools.partial(discovery_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server, discovery)
    server.add_unix_socket(
        settings.edge_dir / _EDGE_SOCKET, services=[routes, ask], caller=identity.EDGE, gid=settings.edge_group
    )


@asynccontextmanager
async def _running(journal: Journal[Entry], reconciler: Reconciler, keepers: Sequence[Keep]) -> AsyncIterator[None]:
    """Run the reconciler, the relay of the journal and the keepers of the edge inside."""
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        owned = [
            tasks.create_task(journal.relay(), name="relay"),
            tasks.create_task(reconciler.run(ready), name="reconciler"),
            *(tasks.create_task(keep()) for keep in keepers),
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
