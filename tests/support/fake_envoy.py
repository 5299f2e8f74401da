"""What Envoy does at the hypervisor's socket: it asks for clusters and endpoints, and takes or refuses each change."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from cellmesh.envoy.discovery.v3 import discovery_pb2, discovery_pb2_grpc
from cellmesh.envoy.endpoint.v3 import endpoint_pb2

CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
_INVALID_ARGUMENT = 3
_SECONDS = 30.0


@dataclass(slots=True)
class FakeEnvoy:
    """Serves what it took, by name; `refuses` says what it has against a change, or None."""

    refuses: Callable[[str, Path], str | None] = lambda _name, _path: None
    serves: dict[str, Path] = field(default_factory=dict)
    owners: dict[str, dict[str, str]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, holds: Callable[[dict[str, Path]], bool]) -> None:
        """Wait until what it serves is as wanted."""
        async with asyncio.timeout(_SECONDS):
            while not holds(self.serves):
                self.changed.clear()
                await self.changed.wait()

    async def run(self, channel: grpc.aio.Channel) -> None:
        """Follow the hypervisor until the stream ends."""
        said: asyncio.Queue[discovery_pb2.DeltaDiscoveryRequest] = asyncio.Queue()
        said.put_nowait(discovery_pb2.DeltaDiscoveryRequest(type_url=CLUSTER))
        call = discovery_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources()
        try:
            await self._follow(call, said)
        finally:
            call.cancel()

    async def _follow(self, call: Any, said: asyncio.Queue[discovery_pb2.DeltaDiscoveryRequest]) -> None:
        await _say(call, said)
        async for response in call:
            word = discovery_pb2.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
            if response.type_url == CLUSTER:
                said.put_nowait(word)
                self._take_clusters(response, said)
            else:
                self._take_endpoints(response, word)
                said.put_nowait(word)
            self.changed.set()
            await _say(call, said)

    def _take_clusters(
        self,
        response: discovery_pb2.DeltaDiscoveryResponse,
        said: asyncio.Queue[discovery_pb2.DeltaDiscoveryRequest],
    ) -> None:
        for name in response.removed_resources:
            self.serves.pop(name, None)
            self.owners.pop(name, None)
        wanted = discovery_pb2.DeltaDiscoveryRequest(
            type_url=ENDPOINT,
            resource_names_subscribe=[resource.name for resource in response.resources],
            resource_names_unsubscribe=response.removed_resources,
        )
        said.put_nowait(wanted)

    def _take_endpoints(
        self, response: discovery_pb2.DeltaDiscoveryResponse, word: discovery_pb2.DeltaDiscoveryRequest
    ) -> None:
        for resource in response.resources:
            message = endpoint_pb2.ClusterLoadAssignment.FromString(resource.resource.value)
            (found,) = message.endpoints[0].lb_endpoints
            path = Path(found.endpoint.address.pipe.path)
            if (fault := self.refuses(resource.name, path)) is not None:
                word.error_detail.code, word.error_detail.message = _INVALID_ARGUMENT, fault
                return
            self.serves[resource.name] = path
            owner = found.metadata.filter_metadata["cellmesh"]
            self.owners[resource.name] = {name: str(value) for name, value in owner.items()}


@asynccontextmanager
async def fake_envoy(socket: Path) -> AsyncIterator[FakeEnvoy]:
    """Connect an Envoy to the hypervisor's socket for the edge; if one is there it counts as connected inside."""
    envoy = FakeEnvoy()
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        following = asyncio.ensure_future(envoy.run(channel))
        heard = asyncio.ensure_future(envoy.changed.wait())
        try:
            # Whatever there is to tell, the hypervisor answers once it knows of an Envoy.
            await asyncio.wait({following, heard}, timeout=_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            yield envoy
        finally:
            for task in (following, heard):
                task.cancel()
            await asyncio.gather(following, heard, return_exceptions=True)


@asynccontextmanager
async def fake_admin(socket: Path, counters: Mapping[str, int]) -> AsyncIterator[None]:
    """Answer at Envoy's admin socket with these counters, whatever is asked."""
    body = json.dumps({"stats": [{"name": name, "value": value} for name, value in counters.items()]}).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, socket)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()
        socket.unlink()


async def _say(call: Any, said: asyncio.Queue[discovery_pb2.DeltaDiscoveryRequest]) -> None:
    # Of a call that is over, whoever reads it learns why.
    with contextlib.suppress(asyncio.InvalidStateError):
        while not said.empty():
            await call.write(said.get_nowait())
