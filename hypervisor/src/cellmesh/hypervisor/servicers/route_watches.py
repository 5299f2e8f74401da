"""The watch over routes, and the live view of what they are asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Protocol

from cellmesh.api.hypervisor.v1 import route_pb2, route_service_pb2
from cellmesh.hypervisor.domain.event import Entry
from cellmesh.hypervisor.domain.route import CurrentRoute, cluster_of
from cellmesh.hypervisor.servicers import encode
from cellmesh.hypervisor.store.mirror import Mirror
from cellmesh.mesh.watch import HEARTBEAT, Bookmark
from cellmesh.service.journal import Journal
from cellmesh.service.shutdown import Shutdown

_TICK = 1.0


class Traffic(Protocol):
    """What the edge counted for one cluster since it started."""

    @property
    def requests(self) -> int:
        """Requests answered."""

    @property
    def server_errors(self) -> int:
        """Of these, with a status of 500 or above."""

    @property
    def active(self) -> int:
        """Requests and streams open now."""

    @property
    def received_bytes(self) -> int:
        """Bytes from the container."""

    @property
    def sent_bytes(self) -> int:
        """Bytes to the container."""


CountTraffic = Callable[[], Awaitable[Mapping[str, Traffic]]]
"""Returns what the edge counted, by cluster. Raises EdgeUnreachable."""


class RouteWatches:
    """Makes the streams of WatchRoutes and WatchTraffic."""

    def __init__(self, journal: Journal[Entry], mirror: Mirror, *, traffic: CountTraffic, shutdown: Shutdown) -> None:
        self._journal = journal
        self._mirror = mirror
        self._traffic = traffic
        self._shutdown = shutdown

    async def routes(self, vm_id: str) -> AsyncIterator[route_service_pb2.WatchRoutesResponse]:
        """Yield the routes there are, then each as it is after a change; an empty `vm_id` is every VM.

        The journal says when to look again, the mirror what is there: of two changes at once only the last is told.
        """

        def wanted(entry: Entry) -> bool:
            return bool(entry.subject.vm_id) and vm_id in ("", entry.subject.vm_id)

        told: dict[str, dict[str, CurrentRoute]] = {}
        position = await self._journal.newest()
        for vm in tuple(self._mirror.vms()):
            if vm_id in ("", vm.vm_id):
                for answer in self._changed(vm.vm_id, told):
                    yield answer
        async with self._shutdown.ends(), aclosing(self._journal.follow(position, wanted)) as changes:
            heard = time.monotonic()
            async for change in changes:
                if isinstance(change, Bookmark):
                    answers = [_bookmark(caught_up=change.caught_up)]
                else:
                    answers = self._changed(change.item.subject.vm_id, told)
                if not answers and time.monotonic() - heard >= HEARTBEAT:
                    # Much may happen to a VM that changes no route of it.
                    answers = [_bookmark()]
                for answer in answers:
                    yield answer
                    heard = time.monotonic()

    def _changed(
        self, vm_id: str, told: dict[str, dict[str, CurrentRoute]]
    ) -> list[route_service_pb2.WatchRoutesResponse]:
        """Return what is to be told of a VM's routes, and note that it was."""
        before = told.pop(vm_id, {})
        now = {route.route.prefix: route for route in self._mirror.routes(vm_id)}
        if now:
            told[vm_id] = now
        answers = [
            route_service_pb2.WatchRoutesResponse(route=encode.route(route))
            for prefix, route in now.items()
            if before.get(prefix) != route
        ]
        gone = [route for prefix, route in before.items() if prefix not in now]
        return answers + [route_service_pb2.WatchRoutesResponse(removed=_name_of(route)) for route in gone]

    async def traffic(self, vm_id: str) -> AsyncIterator[route_service_pb2.WatchTrafficResponse]:
        """Yield what the edge counted, once a second; an empty `vm_id` is every VM."""
        async with self._shutdown.ends():
            while True:
                counted = await self._traffic()
                yield route_service_pb2.WatchTrafficResponse(traffic=self._lines(vm_id, counted))
                await asyncio.sleep(_TICK)

    def _lines(self, vm_id: str, counted: Mapping[str, Traffic]) -> Iterator[route_service_pb2.RouteTraffic]:
        for vm in sorted(self._mirror.vms(), key=lambda vm: vm.vm_id):
            if vm_id not in ("", vm.vm_id):
                continue
            for route in self._mirror.routes(vm.vm_id):
                line = counted.get(cluster_of(vm.user_id, route.route.prefix))
                if line is not None and (line.requests or line.active):
                    yield route_service_pb2.RouteTraffic(
                        vm_id=vm.vm_id,
                        user_id=vm.user_id,
                        prefix=route.route.prefix,
                        requests=line.requests,
                        server_errors=line.server_errors,
                        active=line.active,
                        received_bytes=line.received_bytes,
                        sent_bytes=line.sent_bytes,
                    )


def _bookmark(*, caught_up: bool = False) -> route_service_pb2.WatchRoutesResponse:
    bookmark = route_service_pb2.WatchRoutesResponse.Bookmark(caught_up=caught_up)
    return route_service_pb2.WatchRoutesResponse(bookmark=bookmark)


def _name_of(route: CurrentRoute) -> route_pb2.Route:
    return route_pb2.Route(vm_id=route.route.vm_id, user_id=route.user_id, prefix=route.route.prefix)
