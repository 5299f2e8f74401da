"""A RouteService of which a test decides what becomes of a request that comes from the edge."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from cellmesh.api.hypervisor.v1 import route_pb2, route_service_pb2, route_service_pb2_grpc
from cellmesh.mesh.identity import Caller, caller
from cellmesh.mesh.server import Register

USER = "00000000-0000-4000-8000-000000000001"
ACTIVATE = route_service_pb2.ActivateRouteRequest(user_id=USER, prefix="/")


async def _answer() -> None:
    return


@dataclass(slots=True)
class Routes(route_service_pb2_grpc.RouteServiceServicer):
    """Awaits `behave`, then answers what it is told to; notes what it was asked, and by whom."""

    behave: Callable[[], Awaitable[None]] = _answer
    answer: route_service_pb2.ActivateRouteResponse = field(default_factory=route_service_pb2.ActivateRouteResponse)
    asked: list[tuple[str, str]] = field(default_factory=list)
    callers: set[Caller | None] = field(default_factory=set)
    traceparents: list[str] = field(default_factory=list)
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    async def ActivateRoute(
        self, request: route_service_pb2.ActivateRouteRequest, context: Any
    ) -> route_service_pb2.ActivateRouteResponse:
        """Answer once."""
        self.asked.append((request.user_id, request.prefix))
        self.callers.add(caller())
        self.traceparents.append(dict(context.invocation_metadata()).get("traceparent", ""))
        self.entered.set()
        await self.behave()
        return self.answer

    async def GetRoute(
        self, request: route_service_pb2.GetRouteRequest, context: Any
    ) -> route_service_pb2.GetRouteResponse:
        """Answer with a route of this prefix."""
        self.callers.add(caller())
        return route_service_pb2.GetRouteResponse(route=route_pb2.Route(vm_id=request.vm_id, prefix=request.prefix))

    @property
    def register(self) -> Register:
        """What adds it to a server."""
        return functools.partial(route_service_pb2_grpc.add_RouteServiceServicer_to_server, self)
