"""Putting the agent together, by hand, and running it."""

from __future__ import annotations

import asyncio
import functools
import random
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio

from cellmesh.api.guest.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    container_service_pb2_grpc,
    guest_service_pb2_grpc,
)
from cellmesh.guest import boot, imports, late, vsock
from cellmesh.guest.contain import contain, persist
from cellmesh.guest.containers import crun, rootfs
from cellmesh.guest.containers import discarded as discards
from cellmesh.guest.containers.memory_watch import MemoryWatch
from cellmesh.guest.containers.registry import Containers
from cellmesh.guest.containers.slots import Slots
from cellmesh.guest.exec import sessions as commands
from cellmesh.guest.host.channel import open_channel
from cellmesh.guest.host.hello import say_hello
from cellmesh.guest.host.report import ReportLog
from cellmesh.guest.host.reporter import Reporter
from cellmesh.guest.identity import Assignment, Identity, read_boot_id
from cellmesh.guest.reaper import Reaper
from cellmesh.guest.relay import Relay
from cellmesh.guest.servicers import codec
from cellmesh.guest.servicers.containers import GuestContainerServicer
from cellmesh.guest.servicers.guest import GuestServicer
from cellmesh.guest.servicers.health import HealthServicer
from cellmesh.guest.shutdown import Shutdown

if TYPE_CHECKING:
    from collections.abc import Callable

    from cellmesh.guest.containers.discarded import Discarded
    from cellmesh.guest.exec.sessions import Sessions

_AGENT_SOCKET = f"{boot.RUN}/agent.sock"
_HOST_SOCKET = f"{boot.RUN}/host.sock"
_MESSAGE_LIMIT = 256 << 10
_LAST_ANSWER = 1.0
_SETTLE_AFTER = 1.0  # What a host asks right after Hello is answered well within.
_SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
    ("grpc.max_send_message_length", _MESSAGE_LIMIT),
    ("grpc.max_concurrent_streams", 128),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


async def run_agent(reaper: Reaper) -> None:
    """Serve until the host asks for the end."""
    reaper.attach()
    identity = Identity(read_boot_id())
    async with asyncio.TaskGroup() as group:
        memory = MemoryWatch()
        discarded = functools.cache(lambda: discards.Discarded(rootfs.Places().discarded, reaper))
        containers = Containers(
            runtime=functools.cache(lambda: crun.Crun(reaper, rootfs.Places(), memory, discarded())),
            slots=Slots(Path(boot.DATA, "slots.json")),
            listen=vsock.listen_vsock,
            random=random.random,
            group=group,
        )
        sessions = functools.cache(lambda: commands.Sessions(containers, group))
        shutdown = Shutdown(containers.stop_all)
        server = _server(identity, containers, sessions, shutdown)
        await server.start()
        Relay(
            vsock.listen_vsock(vsock.AGENT_PORT), lambda: vsock.dial_unix(_AGENT_SOCKET), peer_cid=vsock.HOST_CID
        ).start()
        Relay(vsock.listen_unix(_HOST_SOCKET), vsock.dial_host).start()
        reports: ReportLog[agent_service_pb2.ReportRequest] = (
            ReportLog()
        )  # Its sequence is the boot's, not a channel's.
        talk = group.create_task(
            persist(lambda: _talk_to_host(identity, containers, reports), "the talk with the host")
        )
        memory.attach(containers.count_oom_kills)
        settling = group.create_task(contain(_settle(identity, discarded), "settling"))
        await shutdown.finished.wait()
        await server.stop(_LAST_ANSWER)
        sessions().stop()
        talk.cancel()
        settling.cancel()


def _server(
    identity: Identity, containers: Containers, sessions: Callable[[], Sessions], shutdown: Shutdown
) -> grpc.aio.Server:
    server = grpc.aio.server(options=_SERVER_OPTIONS)
    guest_service_pb2_grpc.add_GuestServiceServicer_to_server(GuestServicer(identity, shutdown), server)
    container_service_pb2_grpc.add_GuestContainerServiceServicer_to_server(
        GuestContainerServicer(identity, containers, sessions), server
    )
    server.add_generic_rpc_handlers((HealthServicer(containers).handler(),))
    server.add_insecure_port(f"unix:{_AGENT_SOCKET}")
    return server


async def _settle(identity: Identity, discarded: Callable[[], Discarded]) -> None:
    """Do what the boot was spared, once the host has heard from it and had a moment to ask how it is."""
    await identity.assignment()
    await asyncio.sleep(_SETTLE_AFTER)
    for name in imports.OF_CONTAINERS:
        late.run(name)
        await asyncio.sleep(0)  # A call that has come meanwhile goes first.
    await discarded().run()


async def _talk_to_host(
    identity: Identity,
    containers: Containers,
    reports: ReportLog[agent_service_pb2.ReportRequest],
) -> None:
    async with open_channel(_HOST_SOCKET) as channel:
        stub: agent_service_pb2_grpc.AgentServiceAsyncStub = agent_service_pb2_grpc.AgentServiceStub(channel)
        assignment = await say_hello(stub, identity.boot_id)
        if assignment.discard_layers and not identity.assigned:
            rootfs.discard_layers(rootfs.Places())
        identity.assign(assignment)
        boot.say(f"epoch {assignment.epoch} of VM {assignment.vm_id}")

        def snapshot() -> agent_service_pb2.ReportRequest:
            return _report(assignment, containers)

        reporter = Reporter(stub=stub, identity=identity, changes=containers.changes, snapshot=snapshot, log=reports)
        await reporter.run()


def _report(assignment: Assignment, containers: Containers) -> agent_service_pb2.ReportRequest:
    return agent_service_pb2.ReportRequest(
        vm_id=assignment.vm_id,
        epoch=assignment.epoch,
        containers=[codec.encode_status(status) for status in containers.statuses()],
        dropped_log_bytes=containers.dropped_log_bytes,
    )
