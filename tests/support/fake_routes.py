"""The routes of a fake node: what a test puts there, and streams that break when it says so."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from cellmesh.api.hypervisor.v1 import route_pb2, route_service_pb2, route_service_pb2_grpc
from support.fake_command import Gate


def refuse(context: grpc.ServicerContext, code: int, reason: str, message: str) -> NoReturn:
    """End a call the way a node does: google.rpc.Status with ErrorInfo."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="hypervisor.cellmesh"))
    context.abort_with_status(rpc_status.to_status(status_pb2.Status(code=code, message=message, details=[detail])))
    raise AssertionError


class FakeRoutes(route_service_pb2_grpc.RouteServiceServicer):
    """Routes in a dict; `changes` are what watches hear after it, `traffic` what WatchTraffic says line by line."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], route_pb2.Route] = {}
        self.requests: list[object] = []
        self.changes: list[route_service_pb2.WatchRoutesResponse] = []
        self.traffic: list[route_service_pb2.WatchTrafficResponse] = []
        self.breaks: list[int] = []
        self.refusal: tuple[int, str, str] | None = None
        self.opened = 0
        self._gate = Gate()

    def add(self, vm_id: str, prefix: str, container: str, **fields: object) -> route_pb2.Route:
        """Put a route there."""
        target = route_pb2.RouteTarget(container_name=container)
        route = route_pb2.Route(vm_id=vm_id, prefix=prefix, target=target, revision=1, **fields)
        self.routes[vm_id, prefix] = route
        return route

    def tell(self, **item: object) -> None:
        """Tell the watches of a change."""
        self.changes.append(route_service_pb2.WatchRoutesResponse(**item))
        self._gate.open()

    def close(self) -> None:
        """End every watch."""
        self._gate.close()

    def ListRoutes(
        self, request: route_service_pb2.ListRoutesRequest, context: grpc.ServicerContext
    ) -> route_service_pb2.ListRoutesResponse:
        """Return one route a page."""
        found = [route for route in self.routes.values() if request.vm_id in ("", route.vm_id)]
        index = int(request.page.page_token or 0)
        following = str(index + 1) if index + 1 < len(found) else ""
        return route_service_pb2.ListRoutesResponse(routes=found[index : index + 1], next_page_token=following)

    def SwitchRoute(
        self, request: route_service_pb2.SwitchRouteRequest, context: grpc.ServicerContext
    ) -> route_service_pb2.SwitchRouteResponse:
        """Point a route elsewhere, or refuse as the test said."""
        self.requests.append(request)
        if self.refusal is not None:
            refuse(context, *self.refusal)
        route = self.routes[request.vm_id, request.prefix]
        route.target.CopyFrom(request.target)
        route.state, route.revision = route_pb2.ROUTE_STATE_SERVING, route.revision + 1
        return route_service_pb2.SwitchRouteResponse(route=route)

    def WatchRoutes(
        self, request: route_service_pb2.WatchRoutesRequest, context: grpc.ServicerContext
    ) -> Iterator[route_service_pb2.WatchRoutesResponse]:
        """Send what is there, then what changes from then on."""
        self.opened += 1
        position = len(self.changes)
        for route in self.routes.values():
            if request.vm_id in ("", route.vm_id):
                yield route_service_pb2.WatchRoutesResponse(route=route)
        caught_up = route_service_pb2.WatchRoutesResponse.Bookmark(caught_up=True)
        yield route_service_pb2.WatchRoutesResponse(bookmark=caught_up)
        while self._gate.wait(partial(self._has_after, position), context):
            self._break(context)
            yield self.changes[position]
            position += 1

    def WatchTraffic(
        self, request: route_service_pb2.WatchTrafficRequest, context: grpc.ServicerContext
    ) -> Iterator[route_service_pb2.WatchTrafficResponse]:
        """Say the lines there are, then end."""
        yield from self.traffic

    def _has_after(self, position: int) -> bool:
        return len(self.changes) > position

    def _break(self, context: grpc.ServicerContext) -> None:
        if self.breaks:
            self.breaks.pop(0)
            refuse(context, code_pb2.UNAVAILABLE, "NODE_SHUTTING_DOWN", "The stream was cut.")
