"""A guest that is a few coroutines: it says Hello, reports, serves the agent's services, and ends its machine.

Subclass it to have a guest that lies: every word it says to the host is made by a method of its own.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cellmesh.api.common.v1 import health_pb2 as common_health_pb2
from cellmesh.api.guest.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    container_service_pb2_grpc,
    guest_service_pb2_grpc,
)
from chv53.machine import Exit
from simulator import ingress
from simulator.containers import SimulatedContainer, SimulatedContainers
from simulator.faults import FaultKind
from simulator.machine import SimulatedMachine
from simulator.servicers import ContainerServicer, GuestServicer
from simulator.vsock import relay

if TYPE_CHECKING:
    from simulator.hub import Hub

AGENT_PORT = 1024
HOST_PORT = 1025
_HELLO_SECONDS = 5.0
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_WINDOW = 8
_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 1000))


class SimulatedGuest:
    """One boot of one guest."""

    agent_version = "0.0.0-simulated"
    kernel_release = "6.12.0-simulated"
    ejects = True
    """Whether its kernel lets go of a device that the VMM asks for."""

    def __init__(self, machine: SimulatedMachine, hub: Hub) -> None:
        self.machine = machine
        self.hub = hub
        self.boot_id = str(uuid.uuid4())
        self.booted = time.monotonic()
        self.vm_id = ""
        self.epoch = 0
        self.heartbeat_seconds = 5.0
        self.changed = asyncio.Event()
        self.containers = SimulatedContainers(changed=self.on_change)
        self.agent_socket = hub.agent_socket()
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # not in the stub
        self._container_servicer = self.make_container_servicer()
        self._server: grpc.aio.Server | None = None
        self._sequence = 0
        self._unacknowledged: deque[agent_service_pb2.ReportRequest] = deque()

    # What a hostile guest overrides.

    def make_server(self) -> grpc.aio.Server:
        """Return the server the agent's services are added to."""
        return grpc.aio.server()

    def make_guest_servicer(self) -> GuestServicer:
        """Return what answers GuestService."""
        return GuestServicer(self)

    def make_container_servicer(self) -> ContainerServicer:
        """Return what answers GuestContainerService."""
        return ContainerServicer(self)

    def hello_request(self) -> agent_service_pb2.HelloRequest:
        """Return what the guest says first."""
        return agent_service_pb2.HelloRequest(
            boot_id=self.boot_id,
            agent_version=self.agent_version,
            kernel_release=self.kernel_release,
            protocol_versions=[1],
        )

    def next_report(self) -> agent_service_pb2.ReportRequest:
        """Return the next report: every container, as it is."""
        self._sequence += 1
        return agent_service_pb2.ReportRequest(
            vm_id=self.vm_id, epoch=self.epoch, sequence=self._sequence, containers=self.containers.statuses()
        )

    def listens(self, port: int) -> bool:
        """Whether a connection of the host to this port is taken."""
        return port == AGENT_PORT or self.containers.serving(port) is not None

    async def serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection of the host: the agent's port leads to its gRPC server, any other to a container."""
        if port == AGENT_PORT:
            await relay(reader, writer, self.agent_socket)
        elif (container := self.containers.serving(port)) is not None:
            await self.serve_container(container, reader, writer)

    async def serve_container(
        self, container: SimulatedContainer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer HTTP for a container until its connection or its generation ends."""
        server = ingress.Server(
            vm_id=self.vm_id, epoch=self.epoch, container=container.name, generation=container.generation
        )
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(ingress.serve(server, reader, writer))
            ending = tasks.create_task(self._end_of(container))
            await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
            serving.cancel()
            ending.cancel()

    async def _end_of(self, container: SimulatedContainer) -> None:
        """Return when the container's process is over, or another generation took its place."""
        while container.running and self.containers.serving(container.ingress_port) is container:
            await self.changed.wait()

    def on_power_button(self) -> None:
        """Power off, as an operating system does; a stubborn guest does nothing."""
        self.power_off()

    # What every guest does.

    def power_off(self) -> None:
        """End the machine; its process exits."""
        self.machine.end(Exit.POWER_OFF)

    def reboot(self) -> None:
        """Reset the machine: another boot, with another boot id, in the same process."""
        self.machine.end(Exit.RESET)

    def on_change(self) -> None:
        """Wake everyone who follows the containers."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def run(self) -> None:
        """Boot, say Hello and report until cancelled."""
        await self._start_server()
        self.machine.write_console("simulated guest ready\n")
        if self.machine.vsock is None:
            return
        fault = self.hub.faults.take("guest.hello", self.machine.vsock.path.parent)
        if fault is not None and fault.kind is FaultKind.SILENT:
            return
        address = f"unix:{self.machine.vsock.path}_{HOST_PORT}"
        async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
            stub = agent_service_pb2_grpc.AgentServiceStub(channel)
            await self.talk(stub)

    async def talk(self, stub: agent_service_pb2_grpc.AgentServiceAsyncStub) -> None:
        """Say Hello until there is an answer, then report for ever."""
        await self.say_hello(stub)
        while True:
            try:
                await self._report(stub)
            except grpc.aio.AioRpcError as error:
                self.machine.write_console(f"report: {error.code().name}\n")
            await _pause(_LONGEST_PAUSE)

    async def say_hello(self, stub: agent_service_pb2_grpc.AgentServiceAsyncStub) -> None:
        """Say Hello until the host answers, and remember what it says."""
        pause = _FIRST_PAUSE
        while True:
            try:
                answer = await stub.Hello(self.hello_request(), timeout=_HELLO_SECONDS)
                break
            except grpc.aio.AioRpcError as error:
                self.machine.write_console(f"hello: {error.code().name}\n")
            await _pause(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        self.vm_id, self.epoch = answer.vm_id, answer.epoch
        self.heartbeat_seconds = answer.heartbeat_interval.ToTimedelta().total_seconds() or self.heartbeat_seconds

    async def close(self) -> None:
        """Stop serving."""
        self.containers.close()
        self._container_servicer.close()
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(grace=0)
        self.agent_socket.unlink(missing_ok=True)

    async def _start_server(self) -> None:
        server = self.make_server()
        guest_service_pb2_grpc.add_GuestServiceServicer_to_server(self.make_guest_servicer(), server)
        container_service_pb2_grpc.add_GuestContainerServiceServicer_to_server(self._container_servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        server.add_insecure_port(f"unix:{self.agent_socket}")
        self._server = server
        await server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    async def _report(self, stub: agent_service_pb2_grpc.AgentServiceAsyncStub) -> None:
        call = stub.Report(self._reports())
        async for answer in call:
            while self._unacknowledged and self._unacknowledged[0].sequence <= answer.acknowledged_sequence:
                self._unacknowledged.popleft()

    async def _reports(self) -> AsyncIterator[agent_service_pb2.ReportRequest]:
        for report in tuple(self._unacknowledged):
            yield report
        while True:
            changed = self.changed
            if len(self._unacknowledged) < _WINDOW:
                report = self.next_report()
                self._unacknowledged.append(report)
                await self._publish_health()
                yield report
            try:
                async with asyncio.timeout(self.heartbeat_seconds):
                    await changed.wait()
            except TimeoutError:
                continue  # a heartbeat is due

    async def _publish_health(self) -> None:
        for status in self.containers.statuses():
            serving = status.health == common_health_pb2.HEALTH_STATUS_SERVING
            kind = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
            await self._health.set(status.container_name, kind)


async def _pause(seconds: float) -> None:
    """Sleep, or end now if this task was cancelled before: gRPC swallows that where a stream begins or ends."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    await asyncio.sleep(seconds)
