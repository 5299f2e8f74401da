"""Calls to agents: one connection per boot of a VM for as long as it is used; every answer is checked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration

from cellmesh.api.common.v1 import container_pb2, exec_pb2
from cellmesh.api.guest.v1 import (
    container_service_pb2,
    container_service_pb2_grpc,
    guest_service_pb2,
    guest_service_pb2_grpc,
)
from cellmesh.hypervisor.domain.container import Claim, Container, ContainerStatus
from cellmesh.hypervisor.guest import decode
from cellmesh.hypervisor.guest.errors import translated
from cellmesh.mesh.call import AnswerStream
from cellmesh.mesh.channel import MeshChannel, guest_channel
from cellmesh.mesh.errors import InvalidAnswer, MeshError

# Above a container's grace: what killing it and answering may take.
_STOP_MARGIN = timedelta(seconds=15)


# A connection takes 40 KB, and the next one no longer than a call: few are kept for nobody.
MOST_IDLE = 16


@dataclass(slots=True, kw_only=True)
class _Line:
    """A connection to one boot of a guest, and how many calls are on it."""

    epoch: int
    channel: MeshChannel
    guest: guest_service_pb2_grpc.GuestServiceAsyncStub
    containers: container_service_pb2_grpc.GuestContainerServiceAsyncStub
    calls: int = 0


class GuestClient:
    """The agents of all VMs. Raises GuestUnreachable, GuestMisbehaved, and what the agent says of containers."""

    def __init__(self, socket: Callable[[str, int], Path]) -> None:
        self._socket = socket
        self._lines: dict[str, _Line] = {}

    async def hang_up(self, vm_id: str) -> None:
        """Close the connection to a VM; calls that run on it end with GuestUnreachable."""
        line = self._lines.pop(vm_id, None)
        if line is not None:
            await line.channel.close()

    async def close(self) -> None:
        """Close all connections."""
        for vm_id in tuple(self._lines):
            await self.hang_up(vm_id)

    async def info(self, vm_id: str, epoch: int, *, within: timedelta) -> guest_service_pb2.GetInfoResponse:
        """Return what the agent knows of itself."""
        async with self._line(vm_id, epoch) as line:
            try:
                return await line.guest.GetInfo(guest_service_pb2.GetInfoRequest(), timeout=within.total_seconds())
            except MeshError as error:
                raise translated(error, vm_id=vm_id) from error

    async def shutdown(self, vm_id: str, epoch: int, *, grace: timedelta) -> None:
        """Ask the guest to stop its containers, each within its grace, and to power off."""
        async with self._line(vm_id, epoch) as line:
            request = guest_service_pb2.ShutdownRequest(epoch=epoch, grace=_duration(grace))
            try:
                await line.guest.Shutdown(request, timeout=(grace + _STOP_MARGIN).total_seconds())
            except MeshError as error:
                raise translated(error, vm_id=vm_id) from error

    async def start_container(self, epoch: int, container: Container) -> ContainerStatus:
        """Start a generation of a container and return how it is then."""
        async with self._line(container.vm_id, epoch) as line:
            request = container_service_pb2.StartContainerRequest(
                epoch=epoch,
                container_name=container.name,
                generation=container.generation,
                spec=container_pb2.ContainerSpec.FromString(container.spec.document),
                ingress_port=container.ingress_port,
            )
            try:
                answer = await line.containers.StartContainer(
                    request, timeout=(container.spec.stop_grace + 2 * _STOP_MARGIN).total_seconds()
                )
                return decode.answer(answer.status, name=container.name, generation=container.generation)
            except MeshError as error:
                raise translated(error, vm_id=container.vm_id, name=container.name) from error

    async def stop_container(self, epoch: int, container: Container) -> ContainerStatus:
        """Stop a container and return how it is then."""
        async with self._line(container.vm_id, epoch) as line:
            request = container_service_pb2.StopContainerRequest(epoch=epoch, container_name=container.name)
            try:
                answer = await line.containers.StopContainer(
                    request, timeout=(container.spec.stop_grace + _STOP_MARGIN).total_seconds()
                )
                return decode.answer(answer.status, name=container.name, generation=None)
            except MeshError as error:
                raise translated(error, vm_id=container.vm_id, name=container.name) from error

    async def remove_container(self, vm_id: str, epoch: int, name: str, *, persistent: bool) -> None:
        """Remove the files and the output of a stopped container; one that is not there is removed already."""
        async with self._line(vm_id, epoch) as line:
            request = container_service_pb2.RemoveContainerRequest(
                epoch=epoch, container_name=name, persistent_paths=persistent
            )
            try:
                await line.containers.RemoveContainer(request)
            except MeshError as error:
                raise translated(error, vm_id=vm_id, name=name) from error

    async def release_image(self, vm_id: str, epoch: int, serial: str) -> None:
        """Have the guest let go of an image's disk."""
        async with self._line(vm_id, epoch) as line:
            request = container_service_pb2.ReleaseImageRequest(epoch=epoch, serial=serial)
            try:
                await line.containers.ReleaseImage(request)
            except MeshError as error:
                raise translated(error, vm_id=vm_id) from error

    async def claims(self, vm_id: str, epoch: int, within: timedelta) -> Sequence[Claim]:
        """Return what the agent says of each container now."""
        async with self._line(vm_id, epoch) as line:
            request = container_service_pb2.ListContainersRequest()
            try:
                answer = await line.containers.ListContainers(request, timeout=within.total_seconds())
                return decode.listed(answer.containers)
            except MeshError as error:
                raise translated(error, vm_id=vm_id) from error

    async def stats(self, vm_id: str, epoch: int, name: str) -> container_pb2.ContainerStats:
        """Return what a container uses, as its agent says."""
        async with self._line(vm_id, epoch) as line:
            try:
                answer = await line.containers.GetStats(container_service_pb2.GetStatsRequest(container_name=name))
                if answer.stats.container_name != name:
                    raise InvalidAnswer(f"The agent was asked for container {name} and answered for another.")
            except MeshError as error:
                raise translated(error, vm_id=vm_id, name=name) from error
            return answer.stats

    async def exec(
        self, vm_id: str, epoch: int, name: str, frames: AsyncIterator[exec_pb2.ExecInput]
    ) -> AsyncGenerator[exec_pb2.ExecOutput, None]:
        """Pass the frames of a command both ways; each side waits for the other."""
        async with self._line(vm_id, epoch) as line:
            requests = (container_service_pb2.ExecRequest(input=frame) async for frame in frames)
            answers: Any = line.containers.Exec(requests)
            async with aclosing(_translated(answers, vm_id, name)) as outputs:
                async for answer in outputs:
                    yield answer.output

    async def logs(
        self, vm_id: str, epoch: int, request: container_service_pb2.StreamLogsRequest
    ) -> AsyncGenerator[container_service_pb2.StreamLogsResponse, None]:
        """Pass on a container's output."""
        async with self._line(vm_id, epoch) as line:
            answers: Any = line.containers.StreamLogs(request)
            async with aclosing(_translated(answers, vm_id, request.container_name)) as outputs:
                async for answer in outputs:
                    yield answer

    @asynccontextmanager
    async def _line(self, vm_id: str, epoch: int) -> AsyncIterator[_Line]:
        """Lend the connection to a boot of a VM."""
        found = self._lines.pop(vm_id, None)
        line = found if found is not None and found.epoch == epoch else self._dial(vm_id, epoch)
        self._lines[vm_id] = line  # the last one in the order of use
        line.calls += 1
        try:
            if found is not None and found is not line:
                await found.channel.close()
            yield line
        finally:
            line.calls -= 1
            await self._hang_up_idle()

    def _dial(self, vm_id: str, epoch: int) -> _Line:
        channel = guest_channel(self._socket(vm_id, epoch), vm_id=vm_id)
        return _Line(
            epoch=epoch,
            channel=channel,
            guest=guest_service_pb2_grpc.GuestServiceStub(channel),
            containers=container_service_pb2_grpc.GuestContainerServiceStub(channel),
        )

    async def _hang_up_idle(self) -> None:
        idle = [vm_id for vm_id, line in self._lines.items() if not line.calls] if len(self._lines) > MOST_IDLE else []
        for vm_id in idle[: max(0, len(idle) - MOST_IDLE)]:
            await self.hang_up(vm_id)


async def _translated(answers: AnswerStream, vm_id: str, name: str) -> AsyncGenerator[Any, None]:
    async with aclosing(answers):
        try:
            async for answer in answers:
                yield answer
        except MeshError as error:
            raise translated(error, vm_id=vm_id, name=name) from error


def _duration(value: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(value)
    return message
