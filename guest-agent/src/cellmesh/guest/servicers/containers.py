"""GuestContainerService: the containers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, cast

from cellmesh.api.common.v1 import exec_pb2, log_pb2
from cellmesh.api.guest.v1 import container_service_pb2, container_service_pb2_grpc
from cellmesh.guest.containers.registry import Containers
from cellmesh.guest.errors import ContainerNotRunning, GenerationNotFound, InvalidRequest
from cellmesh.guest.identity import Identity
from cellmesh.guest.servicers import codec
from cellmesh.guest.servicers import exec as exec_stream
from cellmesh.guest.servicers.answer import Context, answered

if TYPE_CHECKING:
    from cellmesh.guest.containers.logs import LogRing, Slice
    from cellmesh.guest.exec.sessions import Sessions

_LOG_HEARTBEAT = 15.0


class GuestContainerServicer(container_service_pb2_grpc.GuestContainerServiceServicer):
    """Answers for the containers; `sessions` is asked for at each command."""

    def __init__(self, identity: Identity, containers: Containers, sessions: Callable[[], Sessions]) -> None:
        self._identity = identity
        self._containers = containers
        self._sessions = sessions

    @answered
    async def StartContainer(
        self, request: container_service_pb2.StartContainerRequest, _context: Context
    ) -> container_service_pb2.StartContainerResponse:
        """Start a container and wait until its process runs."""
        await self._identity.check_epoch(request.epoch)
        if request.generation < 1:
            raise InvalidRequest("generation must be at least 1")
        name, spec = codec.decode_name(request.container_name), codec.decode_spec(request.spec)
        ingress_port = codec.decode_ingress_port(request.ingress_port)
        status = await self._containers.start(name, request.generation, spec, ingress_port)
        return container_service_pb2.StartContainerResponse(status=codec.encode_status(status))

    @answered
    async def StopContainer(
        self, request: container_service_pb2.StopContainerRequest, _context: Context
    ) -> container_service_pb2.StopContainerResponse:
        """Stop a container and wait until it is stopped."""
        await self._identity.check_epoch(request.epoch)
        status = await self._containers.stop(codec.decode_name(request.container_name))
        return container_service_pb2.StopContainerResponse(status=codec.encode_status(status))

    @answered
    async def RemoveContainer(
        self, request: container_service_pb2.RemoveContainerRequest, _context: Context
    ) -> container_service_pb2.RemoveContainerResponse:
        """Remove a stopped container's files and output."""
        await self._identity.check_epoch(request.epoch)
        await self._containers.remove(codec.decode_name(request.container_name), persistent=request.persistent_paths)
        return container_service_pb2.RemoveContainerResponse()

    @answered
    async def ReleaseImage(
        self, request: container_service_pb2.ReleaseImageRequest, _context: Context
    ) -> container_service_pb2.ReleaseImageResponse:
        """Let go of an image's disk."""
        await self._identity.check_epoch(request.epoch)
        await self._containers.release_image(codec.decode_serial(request.serial))
        return container_service_pb2.ReleaseImageResponse()

    @answered
    async def ListContainers(
        self, _request: container_service_pb2.ListContainersRequest, _context: Context
    ) -> container_service_pb2.ListContainersResponse:
        """List the containers by name."""
        statuses = [codec.encode_status(status) for status in self._containers.statuses()]
        return container_service_pb2.ListContainersResponse(containers=statuses)

    @answered
    async def Exec(  # type: ignore[override]  # as StreamLogs
        self, requests: AsyncIterator[container_service_pb2.ExecRequest], context: Context
    ) -> None:
        """Run a command in a container, or come back to one."""
        await exec_stream.serve_exec(self._sessions(), requests, context)

    @answered
    async def StreamLogs(  # type: ignore[override]  # grpc.aio takes a coroutine that writes as well as a generator
        self, request: container_service_pb2.StreamLogsRequest, context: Context
    ) -> None:
        """Stream a container's output from an offset."""
        name = codec.decode_name(request.container_name)
        found = self._containers.logs(name).find(request.generation)
        if found is None:
            message = f"no output of generation {request.generation} of {name} is kept: the newest two are"
            raise GenerationNotFound(message)
        generation, ring = found
        offset, last = request.offset, ring.end
        while True:
            version = ring.changes.version
            part = ring.read(offset)
            await context.write(_encode_slice(generation, part))
            offset = part.next_offset
            if part.ended or (not request.follow and offset >= last):
                return
            if not part.chunks:
                await _change(ring, version)

    @answered
    async def GetStats(
        self, request: container_service_pb2.GetStatsRequest, _context: Context
    ) -> container_service_pb2.GetStatsResponse:
        """Return what a container uses now."""
        name = codec.decode_name(request.container_name)
        try:
            stats = self._containers.find_running(name).cgroup.stats()
        except FileNotFoundError:
            raise ContainerNotRunning(f"container {name} ends just now: start it first") from None
        generation = self._containers.find(name).status.generation
        return container_service_pb2.GetStatsResponse(stats=codec.encode_stats(name, generation, stats))


async def _change(ring: LogRing, version: int) -> None:
    try:
        async with asyncio.timeout(_LOG_HEARTBEAT):
            await ring.changes.after(version)
    except TimeoutError:
        return  # An empty answer tells the reader that the stream lives.


def _encode_slice(generation: int, part: Slice) -> container_service_pb2.StreamLogsResponse:
    chunks = [
        log_pb2.LogChunk(
            offset=chunk.offset,
            stream=cast("exec_pb2.OutputStream", int(chunk.stream)),
            time=codec.timestamp(chunk.time),
            data=chunk.data,
        )
        for chunk in part.chunks
    ]
    return container_service_pb2.StreamLogsResponse(
        generation=generation, chunks=chunks, next_offset=part.next_offset, skipped_bytes=part.skipped
    )
