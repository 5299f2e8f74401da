"""ContainerService: the containers inside a VM. What needs the guest is passed on, each answer checked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from cellmesh.api.guest.v1 import container_service_pb2 as guest_container_service_pb2
from cellmesh.api.hypervisor.v1 import container_pb2, container_service_pb2, container_service_pb2_grpc
from cellmesh.hypervisor.domain.container import Container
from cellmesh.hypervisor.domain.errors import ContainerNotFound, ContainerNotRunning
from cellmesh.hypervisor.guest.client import GuestClient
from cellmesh.hypervisor.lifecycle.containers import Containers
from cellmesh.hypervisor.servicers import decode, encode
from cellmesh.hypervisor.servicers.frames import Frames, opening_expected
from cellmesh.mesh.interceptor import Context
from cellmesh.service.answers import intent_of
from cellmesh.service.shutdown import Shutdown


class ContainerServicer(container_service_pb2_grpc.ContainerServiceServicer):
    """Decodes, asks the containers or their guest, encodes."""

    def __init__(self, containers: Containers, guests: GuestClient, *, shutdown: Shutdown) -> None:
        self._containers = containers
        self._guests = guests
        self._shutdown = shutdown

    async def StartContainer(
        self, request: container_service_pb2.StartContainerRequest, _: Context
    ) -> container_service_pb2.StartContainerResponse:
        """Want a container to run and wait until it does."""
        spec = decode.container_spec(request.spec)
        intent = intent_of(request, container_service_pb2.StartContainerResponse, _started)
        async with self._shutdown.ends():
            wished = await self._containers.start(intent, request.vm_id, request.container_name, spec)
            return _started(await self._containers.started(*_generation(wished.container)))

    async def StopContainer(
        self, request: container_service_pb2.StopContainerRequest, _: Context
    ) -> container_service_pb2.StopContainerResponse:
        """Want a container stopped and wait until it is."""
        intent = intent_of(request, container_service_pb2.StopContainerResponse, _stopped)
        async with self._shutdown.ends():
            wished = await self._containers.stop(intent, request.vm_id, request.container_name)
            return _stopped(await self._containers.stopped(*_generation(wished.container)))

    async def RestartContainer(
        self, request: container_service_pb2.RestartContainerRequest, _: Context
    ) -> container_service_pb2.RestartContainerResponse:
        """Start a container again as it was."""
        intent = intent_of(request, container_service_pb2.RestartContainerResponse, _restarted)
        async with self._shutdown.ends():
            wished = await self._containers.restart(intent, request.vm_id, request.container_name)
            return _restarted(await self._containers.started(*_generation(wished.container)))

    async def DeleteContainer(
        self, request: container_service_pb2.DeleteContainerRequest, _: Context
    ) -> container_service_pb2.DeleteContainerResponse:
        """Remove a container with its files."""
        deleted = container_service_pb2.DeleteContainerResponse
        intent = intent_of(request, deleted, lambda _: deleted())
        async with self._shutdown.ends():
            return await self._containers.delete(
                intent,
                request.vm_id,
                request.container_name,
                force=request.force,
                persistent=request.persistent_paths,
            )

    async def GetContainer(
        self, request: container_service_pb2.GetContainerRequest, _: Context
    ) -> container_service_pb2.GetContainerResponse:
        """Return one container."""
        container = await self._containers.get(request.vm_id, request.container_name)
        return container_service_pb2.GetContainerResponse(container=encode.container(container))

    async def ListContainers(
        self, request: container_service_pb2.ListContainersRequest, _: Context
    ) -> container_service_pb2.ListContainersResponse:
        """List the containers of a VM."""
        containers = await self._containers.list(request.vm_id)
        return container_service_pb2.ListContainersResponse(containers=[encode.container(c) for c in containers])

    async def Exec(
        self, request_iterator: AsyncIterator[container_service_pb2.ExecRequest], _: Context
    ) -> AsyncIterator[container_service_pb2.ExecResponse]:
        """Run a command in a container, or come back to one."""
        first = await anext(request_iterator, None)
        if first is None or first.input.WhichOneof("frame") != "open":
            raise opening_expected()
        opened = first.input.open
        decode.require_fits_guest(opened, "input.open")
        vm = await self._containers.running_vm(opened.vm_id, opened.container_name)
        await self._containers.audit_exec(vm.vm_id, opened.container_name, opened.exec_id)
        frames = Frames(first.input, request_iterator)
        answers = self._guests.exec(vm.vm_id, vm.epoch, opened.container_name, frames.each())
        known = self._known(opened.vm_id, opened.container_name)
        async with known, self._shutdown.ends(), aclosing(answers):
            async for output in answers:
                frames.check()
                yield container_service_pb2.ExecResponse(output=output)
        frames.check()

    async def StreamLogs(
        self, request: container_service_pb2.StreamLogsRequest, _: Context
    ) -> AsyncIterator[container_service_pb2.StreamLogsResponse]:
        """Stream a container's output from an offset."""
        vm = await self._containers.running_vm(request.vm_id, request.container_name)
        wanted = guest_container_service_pb2.StreamLogsRequest(
            container_name=request.container_name,
            generation=request.generation,
            offset=request.offset,
            follow=request.follow,
        )
        answers = self._guests.logs(vm.vm_id, vm.epoch, wanted)
        known = self._known(request.vm_id, request.container_name)
        async with known, self._shutdown.ends(), aclosing(answers):
            async for answer in answers:
                yield container_service_pb2.StreamLogsResponse(
                    generation=answer.generation,
                    chunks=answer.chunks,
                    next_offset=answer.next_offset,
                    skipped_bytes=answer.skipped_bytes,
                )

    async def GetStats(
        self, request: container_service_pb2.GetStatsRequest, _: Context
    ) -> container_service_pb2.GetStatsResponse:
        """Return what a container uses now."""
        vm = await self._containers.running_vm(request.vm_id, request.container_name)
        async with self._known(request.vm_id, request.container_name):
            stats = await self._guests.stats(vm.vm_id, vm.epoch, request.container_name)
        return container_service_pb2.GetStatsResponse(stats=stats)

    @asynccontextmanager
    async def _known(self, vm_id: str, name: str) -> AsyncIterator[None]:
        """Say that a container does not run in place of that there is none: its agent knows those of this boot only."""
        try:
            yield
        except ContainerNotFound as error:
            container = await self._containers.get(vm_id, name)  # It may have been deleted meanwhile.
            raise ContainerNotRunning(
                f"Container {name} is {container.status.state.name} and has not run since its VM started; start it."
            ) from error


def _started(container: Container) -> container_service_pb2.StartContainerResponse:
    return container_service_pb2.StartContainerResponse(container=encode.container(container))


def _stopped(container: Container) -> container_service_pb2.StopContainerResponse:
    return container_service_pb2.StopContainerResponse(container=encode.container(container))


def _restarted(container: Container) -> container_service_pb2.RestartContainerResponse:
    return container_service_pb2.RestartContainerResponse(container=encode.container(container))


def _generation(container: container_pb2.Container) -> tuple[str, str, int]:
    """Return the generation a wish is about; a repeated one is about that same generation."""
    return container.vm_id, container.container_name, container.generation
