"""Tells Envoys which clusters there are and where they lead, and hears what they take (incremental ADS).

Source of the protocol: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext

import structlog

from cellmesh.envoy.discovery.v3 import discovery_pb2, discovery_pb2_grpc
from cellmesh.hypervisor.edge import resources
from cellmesh.hypervisor.edge.endpoint import Endpoint, Endpoints
from cellmesh.hypervisor.edge.probe import ProbeFailed
from cellmesh.hypervisor.edge.subscription import Desired, Refusal, Subscription, readable
from cellmesh.hypervisor.limits import RouteLimits
from cellmesh.mesh.interceptor import Context

MAX_STREAMS = 16
"""The most Envoys at once: one, and while it is replaced two."""

_log = structlog.get_logger()


class EdgeRefused(Exception):
    """An Envoy does not take a resource; it goes on with what it had. The message is Envoy's, on one line."""


class EdgeUnreachable(Exception):
    """No Envoy is there to serve a resource, or none said in time that it does."""


class TooManyEnvoys(RuntimeError):
    """More Envoys ask than there can be."""


async def _no_proof() -> None:
    """Ask for nothing more than Envoy's word."""


class Discovery:
    """The clusters there shall be, and what each connected Envoy said of them.

    Envoys are told nothing before the first `put`, which has to be the whole: an Envoy that comes back to a
    hypervisor that has just started shall not lose what it serves. `proof` is awaited before a resource counts as
    served; it returns when all of Envoy's workers have what its main thread took.
    """

    def __init__(self, limits: RouteLimits | None = None, *, proof: Callable[[], Awaitable[None]] = _no_proof) -> None:
        self._limits = limits or RouteLimits()
        self._proof = proof
        self._version = 0
        self._endpoints: dict[str, Endpoint] = {}
        self._versions: dict[str, int] = {}
        self._streams: set[Stream] = set()
        self._news = asyncio.Event()

    def put(self, endpoints: Endpoints) -> int:
        """Set or remove (None) clusters by name; return the version from which on this is so. Costs what changed."""
        changed = [name for name, endpoint in endpoints.items() if self._endpoints.get(name) != endpoint]
        if changed or not self._version:
            self._version += 1
        known = {name for name in changed if name in self._endpoints}
        for name in changed:
            if (endpoint := endpoints[name]) is None:
                del self._endpoints[name], self._versions[name]
            else:
                self._endpoints[name], self._versions[name] = endpoint, self._version
        # A cluster that leads elsewhere is the same cluster.
        clusters = [name for name in changed if name not in known or endpoints[name] is None]
        for stream in self._streams:
            stream.changed(clusters=clusters, endpoints=changed)
        return self._version

    async def served(self, name: str, version: int, *, timeout: float) -> None:  # noqa: ASYNC109  # told in its error
        """Return when every connected Envoy serves a cluster as of `version`, or later.

        Raises EdgeRefused as soon as one refuses it, EdgeUnreachable if none is connected or `timeout` seconds pass.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self._all_serve(name, version):
                    await self._news.wait()
                await self._proof()
        except ProbeFailed as error:
            raise EdgeUnreachable(str(error)) from error
        except TimeoutError:
            raise EdgeUnreachable(f"The edge did not say within {timeout:g} s that it serves this.") from None

    @property
    def connected(self) -> int:
        """How many Envoys are connected."""
        return len(self._streams)

    @property
    def primed(self) -> bool:
        """Whether the whole was put once."""
        return self._version > 0

    def names(self) -> Iterable[str]:
        """Return the names of all clusters."""
        return self._endpoints.keys()

    def cluster(self, name: str) -> Desired | None:
        """Return a cluster as it shall be, or None."""
        if name not in self._endpoints:
            return None
        return Desired(resource=resources.cluster(name, self._limits), version=self._versions[name])

    def assignment(self, name: str) -> Desired | None:
        """Return where a cluster shall lead, or None."""
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            return None
        return Desired(resource=resources.assignment(name, endpoint), version=self._versions[name])

    @contextmanager
    def stream(self) -> Iterator[Stream]:
        """Count an Envoy as connected inside; raise TooManyEnvoys."""
        if len(self._streams) >= MAX_STREAMS:
            raise TooManyEnvoys(f"{MAX_STREAMS} Envoys are connected already.")
        stream = Stream(self)
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            self.tell()

    def tell(self) -> None:
        """Wake whoever waits for a word of an Envoy."""
        self._news.set()
        self._news = asyncio.Event()

    def _all_serve(self, name: str, version: int) -> bool:
        if not self._streams:
            raise EdgeUnreachable("No edge is connected.")
        least = min(version, self._versions.get(name, version))
        here = name in self._endpoints
        waiting = [stream for stream in self._streams if not stream.serves(name, least, here=here)]
        for stream in waiting:
            if (refusal := stream.refusal(name)) is not None and refusal.version >= least:
                raise EdgeRefused(refusal.message)
        return not waiting


class Stream:
    """One connected Envoy."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._clusters = Subscription(resources.CLUSTER, everything=True, desired=discovery.cluster)
        self._endpoints = Subscription(resources.ENDPOINT, everything=False, desired=discovery.assignment)
        self._kinds = {resources.CLUSTER: self._clusters, resources.ENDPOINT: self._endpoints}
        self.wake = asyncio.Event()

    def hear(self, request: discovery_pb2.DeltaDiscoveryRequest) -> None:
        """Take in a subscription or the word on a response; raise TooManyNames."""
        kind = self._kinds.get(request.type_url)
        if kind is None:
            # A kind we have none of: to be silent is to have nothing.
            return
        kind.hear(request, self._discovery.names())
        if request.HasField("error_detail"):
            _log.warning("edge.refused", type_url=request.type_url, error=readable(request.error_detail.message))
        self.wake.set()
        self._discovery.tell()

    def changed(self, *, clusters: Iterable[str], endpoints: Iterable[str]) -> None:
        """Note which clusters came or went, and which lead elsewhere."""
        self._clusters.changed(clusters)
        self._endpoints.changed(endpoints)
        self.wake.set()

    def responses(self) -> Iterator[discovery_pb2.DeltaDiscoveryResponse]:
        """Return what is to be sent now, clusters before their endpoints."""
        if self._discovery.primed:
            for kind in self._kinds.values():
                if (response := kind.response()) is not None:
                    yield response
            # What an Envoy turned out to have already counts as taken.
            self._discovery.tell()

    def serves(self, name: str, version: int, *, here: bool) -> bool:
        """Return whether this Envoy has a cluster as of `version`, or for one that is gone, has it no longer."""
        if not here:
            return not self._clusters.pending(name)
        return self._endpoints.taken.get(name, -1) >= version

    def refusal(self, name: str) -> Refusal | None:
        """Return the last refusal of a cluster or its endpoint."""
        return self._clusters.refused.get(name) or self._endpoints.refused.get(name)


class DiscoveryServicer(discovery_pb2_grpc.AggregatedDiscoveryServiceServicer):
    """Lets Envoys ask, for as long as `ends` lets whoever entered it go on."""

    def __init__(
        self, discovery: Discovery, *, ends: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
    ) -> None:
        self._discovery = discovery
        self._ends = ends

    async def DeltaAggregatedResources(
        self, request_iterator: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest], _: Context
    ) -> AsyncIterator[discovery_pb2.DeltaDiscoveryResponse]:
        """Send what changed to one Envoy until it hangs up."""
        with self._discovery.stream() as stream:
            async with self._ends(), asyncio.TaskGroup() as tasks:
                listening = tasks.create_task(_listen(stream, request_iterator), name="discovery")
                try:
                    while not listening.done():
                        await stream.wake.wait()
                        stream.wake.clear()
                        for response in stream.responses():
                            yield response
                finally:
                    listening.cancel()


async def _listen(stream: Stream, requests: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest]) -> None:
    try:
        async for request in requests:
            stream.hear(request)
    finally:
        stream.wake.set()
