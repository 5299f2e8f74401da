"""The sockets agents dial, one per VM: a server of its own on each, so that the socket is the VM's identity."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from cellmesh.api.guest.v1 import agent_service_pb2, agent_service_pb2_grpc
from cellmesh.hypervisor.guest import decode
from cellmesh.hypervisor.lifecycle.agents import Agents
from cellmesh.mesh import identity
from cellmesh.mesh.acceptor import Bounds
from cellmesh.mesh.errors import InvalidRequest, sanitize
from cellmesh.mesh.interceptor import Context
from cellmesh.mesh.server import GuestServer

_MAX_MESSAGE = 256


class Listeners:
    """Opens and closes the sockets of VMs.

    `own` gives a socket to its VM's user. `inner` is a directory of ours for the sockets behind those; a guest may say
    nothing for `silence` seconds before it has to connect again.
    """

    def __init__(
        self,
        agents: Agents,
        *,
        socket: Callable[[str], Path],
        own: Callable[[Path, str], Awaitable[None]],
        inner: Path,
        silence: float,
    ) -> None:
        servicer = AgentServicer(agents)
        self._register = functools.partial(agent_service_pb2_grpc.add_AgentServiceServicer_to_server, servicer)
        self._socket = socket
        self._own = own
        self._inner = inner
        self._bounds = Bounds(silence=silence)
        self._servers: dict[str, GuestServer] = {}

    async def open(self, vm_id: str) -> None:
        """Listen to a VM; OSError if its socket cannot be bound."""
        if vm_id in self._servers:
            return
        path = self._socket(vm_id)
        self._inner.mkdir(mode=0o700, exist_ok=True)
        server = GuestServer(
            path, [self._register], vm_id=vm_id, inner=self._inner / path.parent.name, bounds=self._bounds
        )
        self._servers[vm_id] = server
        await server.start()
        await self._own(path, vm_id)

    async def close(self, vm_id: str) -> None:
        """Listen to a VM no longer."""
        server = self._servers.pop(vm_id, None)
        if server is not None:
            await server.stop()

    async def close_all(self) -> None:
        """Listen to nobody any longer."""
        for vm_id in tuple(self._servers):
            await self.close(vm_id)


class AgentServicer(agent_service_pb2_grpc.AgentServiceServicer):
    """What agents call. Which VM calls is known from the socket."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    async def Hello(self, request: agent_service_pb2.HelloRequest, _: Context) -> agent_service_pb2.HelloResponse:
        """Say that the guest has booted."""
        vm_id = _calling_vm()
        welcome = await self._agents.hello(
            vm_id, boot_id=request.boot_id, protocol_versions=tuple(request.protocol_versions)
        )
        answer = agent_service_pb2.HelloResponse(
            vm_id=vm_id,
            epoch=welcome.epoch,
            protocol_version=1,
            discard_layers=welcome.discard_layers,
        )
        answer.heartbeat_interval.FromTimedelta(welcome.heartbeat_interval)
        answer.time.FromDatetime(welcome.time)
        return answer

    async def Report(
        self, request_iterator: AsyncIterator[agent_service_pb2.ReportRequest], _: Context
    ) -> AsyncIterator[agent_service_pb2.ReportResponse]:
        """Hear how the containers are."""
        vm_id = _calling_vm()
        try:
            async for request in request_iterator:
                acknowledged = await self._agents.report(vm_id, decode.report(request))
                yield agent_service_pb2.ReportResponse(acknowledged_sequence=acknowledged)
        except InvalidRequest as error:
            await self._agents.misbehaved(vm_id, "INVALID_MESSAGE", sanitize(error.message, _MAX_MESSAGE))
            raise


def _calling_vm() -> str:
    caller = identity.caller()
    if caller is None or caller.role is not identity.Role.GUEST_AGENT:
        raise TypeError("AgentService is served to guests only")
    return caller.name
