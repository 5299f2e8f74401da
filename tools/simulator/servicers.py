"""The gRPC services of a simulated agent. A hostile guest overrides a method here or gives other servicers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import grpc.aio

from cellmesh.api.common.v1 import container_pb2, exec_pb2
from cellmesh.api.guest.v1 import (
    container_service_pb2,
    container_service_pb2_grpc,
    guest_service_pb2,
    guest_service_pb2_grpc,
)
from simulator.commands import SimulatedCommand
from simulator.errors import Refusal, abort
from simulator.exec_stream import ExecStream, end_reading

if TYPE_CHECKING:
    from simulator.guest import SimulatedGuest

_LOG_CHUNK = 64 * 1024
_MEMORY_BYTES = 64 << 20
_SERIAL_DIGITS = 20
_MOST_COMMANDS = 32
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class GuestServicer(guest_service_pb2_grpc.GuestServiceServicer):
    """GuestService of one boot."""

    def __init__(self, guest: SimulatedGuest) -> None:
        self.guest = guest

    async def GetInfo(
        self, _request: guest_service_pb2.GetInfoRequest, _context: _Context
    ) -> guest_service_pb2.GetInfoResponse:
        """Return made-up sizes and the true boot id."""
        answer = guest_service_pb2.GetInfoResponse(
            boot_id=self.guest.boot_id,
            agent_version=self.guest.agent_version,
            kernel_release=self.guest.kernel_release,
            memory_total_bytes=int(self.guest.machine.config["memory"]["size"]),
            memory_available_bytes=int(self.guest.machine.config["memory"]["size"]) // 2,
            disk_total_bytes=1 << 30,
            disk_available_bytes=1 << 29,
            agent_rss_bytes=20 << 20,
            agent_module_count=1,
        )
        answer.uptime.FromNanoseconds(int((time.monotonic() - self.guest.booted) * 1e9))
        return answer

    async def SyncClock(
        self, _request: guest_service_pb2.SyncClockRequest, _context: _Context
    ) -> guest_service_pb2.SyncClockResponse:
        """Answer that the clock was right."""
        answer = guest_service_pb2.SyncClockResponse()
        answer.adjustment.FromNanoseconds(0)
        return answer

    async def Shutdown(
        self, request: guest_service_pb2.ShutdownRequest, context: _Context
    ) -> guest_service_pb2.ShutdownResponse:
        """Stop the containers, answer, power off."""
        await _check_epoch(self.guest, request.epoch, context)
        for status in self.guest.containers.statuses():
            self.guest.containers[status.container_name].stop()
        context.add_done_callback(lambda _context: self.guest.power_off())  # type: ignore[arg-type]  # the stub's callback takes nothing
        return guest_service_pb2.ShutdownResponse()


class ContainerServicer(container_service_pb2_grpc.GuestContainerServiceServicer):
    """GuestContainerService of one boot."""

    def __init__(self, guest: SimulatedGuest) -> None:
        self.guest = guest
        self._commands: dict[str, SimulatedCommand] = {}

    def close(self) -> None:
        """Forget timers."""
        for command in self._commands.values():
            command.close()

    async def StartContainer(
        self, request: container_service_pb2.StartContainerRequest, context: _Context
    ) -> container_service_pb2.StartContainerResponse:
        """Start a container whose image is plugged in as a disk."""
        await _check_epoch(self.guest, request.epoch, context)
        try:
            self._require_image(request.spec.image)
            started = self.guest.containers.start(
                request.container_name, request.generation, request.spec, ingress_port=request.ingress_port
            )
        except Refusal as refusal:
            await abort(context, refusal)
        return container_service_pb2.StartContainerResponse(status=started.status())

    async def StopContainer(
        self, request: container_service_pb2.StopContainerRequest, context: _Context
    ) -> container_service_pb2.StopContainerResponse:
        """Stop a container at once."""
        await _check_epoch(self.guest, request.epoch, context)
        try:
            container = self.guest.containers[request.container_name]
        except Refusal as refusal:
            await abort(context, refusal)
        if container.state != container_pb2.CONTAINER_STATE_STOPPED:
            container.stop()
        return container_service_pb2.StopContainerResponse(status=container.status())

    async def RemoveContainer(
        self, request: container_service_pb2.RemoveContainerRequest, context: _Context
    ) -> container_service_pb2.RemoveContainerResponse:
        """Forget a stopped container."""
        await _check_epoch(self.guest, request.epoch, context)
        try:
            self.guest.containers.remove(request.container_name)
        except Refusal as refusal:
            await abort(context, refusal)
        return container_service_pb2.RemoveContainerResponse()

    async def ReleaseImage(
        self, request: container_service_pb2.ReleaseImageRequest, context: _Context
    ) -> container_service_pb2.ReleaseImageResponse:
        """Let go of an image that no container is made of."""
        await _check_epoch(self.guest, request.epoch, context)
        try:
            self.guest.containers.require_unused(request.serial)
        except Refusal as refusal:
            await abort(context, refusal)
        return container_service_pb2.ReleaseImageResponse()

    async def ListContainers(
        self, _request: container_service_pb2.ListContainersRequest, _context: _Context
    ) -> container_service_pb2.ListContainersResponse:
        """Return all containers."""
        return container_service_pb2.ListContainersResponse(containers=self.guest.containers.statuses())

    async def GetStats(
        self, request: container_service_pb2.GetStatsRequest, context: _Context
    ) -> container_service_pb2.GetStatsResponse:
        """Return the numbers of an idle container."""
        try:
            container = self.guest.containers[request.container_name]
            _require_running(container.running, container.name)
        except Refusal as refusal:
            await abort(context, refusal)
        stats = container_pb2.ContainerStats(
            container_name=container.name,
            generation=container.generation,
            memory_bytes=_MEMORY_BYTES // 4,
            memory_peak_bytes=_MEMORY_BYTES // 2,
            memory_limit_bytes=container.spec.resources.memory_bytes or _MEMORY_BYTES,
            pids=1,
        )
        return container_service_pb2.GetStatsResponse(stats=stats)

    async def StreamLogs(
        self, request: container_service_pb2.StreamLogsRequest, context: _Context
    ) -> AsyncIterator[container_service_pb2.StreamLogsResponse]:
        """Stream what it has said."""
        try:
            container = self.guest.containers[request.container_name]
            _require_generation(container.generation, request.generation)
        except Refusal as refusal:
            await abort(context, refusal)
        offset = min(request.offset, len(container.log))
        while True:
            changed = self.guest.changed
            while offset < len(container.log):
                chunk = container.chunk(offset, _LOG_CHUNK)
                offset += len(chunk.data)
                yield container_service_pb2.StreamLogsResponse(
                    generation=container.generation, chunks=[chunk], next_offset=offset
                )
            if not request.follow or not container.running:
                return
            await changed.wait()

    async def Exec(
        self, request_iterator: AsyncIterator[container_service_pb2.ExecRequest], context: _Context
    ) -> AsyncIterator[container_service_pb2.ExecResponse]:
        """Run one of the few programs, or come back to it."""
        opening = (await anext(request_iterator)).input.open
        try:
            command, resumed = self._find_or_start(opening)
        except Refusal as refusal:
            await abort(context, refusal)
        stream = ExecStream(command, opening)
        opened = exec_pb2.ExecOpened(resumed=resumed, stdin_offset=command.stdin_offset)
        yield container_service_pb2.ExecResponse(output=exec_pb2.ExecOutput(opened=opened))
        reading = asyncio.create_task(stream.read(request_iterator))
        try:
            async for frame in stream.write():
                yield container_service_pb2.ExecResponse(output=frame)
        except Refusal as refusal:
            await abort(context, refusal)
        finally:
            await end_reading(reading)

    def _require_image(self, image: str) -> None:
        serial = image.removeprefix("sha256:")[:_SERIAL_DIGITS]
        if serial not in self.guest.machine.serials:
            raise Refusal(grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_ATTACHED", f"no disk has the serial {serial}")

    def _find_or_start(self, opening: exec_pb2.ExecOpen) -> tuple[SimulatedCommand, bool]:
        known = self._commands.get(opening.exec_id)
        if known is not None:
            return known, True
        if opening.resume:
            raise Refusal(grpc.StatusCode.NOT_FOUND, "EXEC_NOT_FOUND", f"no command has the id {opening.exec_id}")
        container = self.guest.containers[opening.container_name]
        _require_running(container.running, container.name)
        if sum(command.exit_code is None for command in self._commands.values()) >= _MOST_COMMANDS:
            message = f"there are {_MOST_COMMANDS} commands"
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_EXECS", message)
        command = SimulatedCommand(list(opening.argv))
        self._commands[opening.exec_id] = command
        return command, False


async def _check_epoch(guest: SimulatedGuest, epoch: int, context: _Context) -> None:
    if epoch != guest.epoch:
        message = f"this is epoch {guest.epoch}, the call is for {epoch}"
        await abort(context, Refusal(grpc.StatusCode.FAILED_PRECONDITION, "WRONG_EPOCH", message))


def _require_running(running: bool, name: str) -> None:  # noqa: FBT001 - a fact, not a switch
    if not running:
        message = f"the process of {name} does not run; start the container"
        raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "CONTAINER_NOT_RUNNING", message)


def _require_generation(current: int, wanted: int) -> None:
    if wanted not in {0, current}:
        raise Refusal(grpc.StatusCode.NOT_FOUND, "GENERATION_NOT_FOUND", f"no output of generation {wanted} is kept")
