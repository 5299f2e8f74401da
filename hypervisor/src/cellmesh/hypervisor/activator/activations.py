"""Asking the hypervisor: once for all requests of a route that are there at the same time, and not twice in a blink."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import grpc

from cellmesh.api.hypervisor.v1 import route_service_pb2, route_service_pb2_grpc
from cellmesh.hypervisor.activator import verdict
from cellmesh.hypervisor.activator.asked import RouteKey
from cellmesh.hypervisor.activator.verdict import Verdict
from cellmesh.mesh.errors import MeshError

Ask = Callable[[RouteKey], Awaitable[Verdict]]
"""Asks the hypervisor to activate a route; raises MeshError."""

BLINK_SECONDS = 0.25
"""How long what the hypervisor said is said again."""
WAITING_PER_USER = 64
"""How many requests of one user wait for the hypervisor at once."""


def asking(hypervisor: grpc.aio.Channel) -> Ask:
    """Return what asks the hypervisor at the other end of a channel, within the contract's deadline."""
    routes = route_service_pb2_grpc.RouteServiceStub(hypervisor)

    async def ask(route: RouteKey) -> Verdict:
        request = route_service_pb2.ActivateRouteRequest(user_id=route.user_id, prefix=route.prefix)
        return verdict.of_response(await routes.ActivateRoute(request))

    return ask


class Activations:
    """What requests get, route by route. Use it as an async context manager: it owns the calls that run."""

    def __init__(
        self,
        ask: Ask,
        *,
        clock: Callable[[], float] = time.monotonic,
        blink: float = BLINK_SECONDS,
        waiting_per_user: int = WAITING_PER_USER,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._blink = blink
        self._waiting_per_user = waiting_per_user
        self._running: dict[RouteKey, asyncio.Future[Verdict]] = {}
        self._waiting: Counter[str] = Counter()
        # By the time they were said, the oldest first.
        self._said: OrderedDict[RouteKey, tuple[float, Verdict]] = OrderedDict()
        self._calls = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._calls.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._calls.__aexit__(kind, error, trace)

    async def verdict(self, route: RouteKey) -> Verdict:
        """Return what a request for a route gets; raise what was not expected to go wrong."""
        if (said := self._just_said(route)) is not None:
            return said
        if self._waiting[route.user_id] >= self._waiting_per_user:
            return verdict.too_many_waiting()
        self._waiting[route.user_id] += 1
        try:
            # One who hangs up must not take the answer from the others.
            return await asyncio.shield(self._running.get(route) or self._start(route))
        finally:
            self._waiting[route.user_id] -= 1
            if not self._waiting[route.user_id]:
                del self._waiting[route.user_id]

    def _just_said(self, route: RouteKey) -> Verdict | None:
        now = self._clock()
        while self._said and next(iter(self._said.values()))[0] + self._blink <= now:
            self._said.popitem(last=False)
        found = self._said.get(route)
        return None if found is None else found[1]

    def _start(self, route: RouteKey) -> asyncio.Future[Verdict]:
        future = self._running[route] = asyncio.get_running_loop().create_future()
        # Of the trace of the request that was first; the others only wait with it.
        self._calls.create_task(self._call(route, future))
        return future

    async def _call(self, route: RouteKey, future: asyncio.Future[Verdict]) -> None:
        try:
            said = await self._ask(route)
        except MeshError as error:
            said = verdict.of_error(error)
        except asyncio.CancelledError:
            future.cancel()
            raise
        except Exception as error:
            # Told to each request that waits, not to the group of the calls: they are others' requests.
            future.set_exception(error)
            future.exception()
            return
        finally:
            del self._running[route]
        self._said[route] = (self._clock(), said)
        self._said.move_to_end(route)
        if not future.cancelled():
            future.set_result(said)
