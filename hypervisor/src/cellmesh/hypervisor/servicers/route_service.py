"""RouteService: which container answers at which path."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cellmesh.api.hypervisor.v1 import route_service_pb2, route_service_pb2_grpc
from cellmesh.hypervisor.domain.route import CurrentRoute
from cellmesh.hypervisor.lifecycle.routes import Routes
from cellmesh.hypervisor.lifecycle.switches import Switches
from cellmesh.hypervisor.servicers import decode, encode
from cellmesh.hypervisor.servicers.cursor import after_route, route_cursor
from cellmesh.hypervisor.servicers.route_watches import RouteWatches
from cellmesh.mesh import deadline
from cellmesh.mesh.interceptor import Context
from cellmesh.mesh.pages import PageTokens, page_size
from cellmesh.service.answers import intent_of
from cellmesh.service.shutdown import Shutdown

# What encoding and sending the answer may take of the caller's deadline.
_MARGIN = 0.1
_PATIENCE = 5.0


class RouteServicer(route_service_pb2_grpc.RouteServiceServicer):
    """Decodes, asks the routes, encodes."""

    def __init__(
        self, routes: Routes, switches: Switches, *, watches: RouteWatches, pages: PageTokens, shutdown: Shutdown
    ) -> None:
        self._routes = routes
        self._switches = switches
        self._watches = watches
        self._pages = pages
        self._shutdown = shutdown

    async def GetRoute(
        self, request: route_service_pb2.GetRouteRequest, _: Context
    ) -> route_service_pb2.GetRouteResponse:
        """Return one route."""
        return route_service_pb2.GetRouteResponse(route=encode.route(self._routes.get(request.vm_id, request.prefix)))

    async def ListRoutes(
        self, request: route_service_pb2.ListRoutesRequest, _: Context
    ) -> route_service_pb2.ListRoutesResponse:
        """List routes, by VM from the oldest, then by prefix."""
        size = page_size(request.page.page_size)
        token = request.page.page_token
        after = after_route(self._pages.decode(request, token)) if token else None
        found = self._routes.list(vm_id=request.vm_id, after=after, limit=size + 1)
        page, more = found[:size], len(found) > size
        return route_service_pb2.ListRoutesResponse(
            routes=[encode.route(route) for _, route in page],
            next_page_token=self._pages.encode(request, route_cursor(page[-1][0])) if more else "",
        )

    async def SwitchRoute(
        self, request: route_service_pb2.SwitchRouteRequest, _: Context
    ) -> route_service_pb2.SwitchRouteResponse:
        """Point a route elsewhere and wait until the edge serves it."""
        left = deadline.remaining()
        patience = _PATIENCE if left is None else max(left - _MARGIN, 0.0)
        intent, wish = intent_of(request, route_service_pb2.SwitchRouteResponse, _switched), decode.wish(request)
        async with self._shutdown.ends():
            answer = await self._switches.switch(intent, wish)
            await self._switches.served(intent, wish, answer.route.revision, patience=patience)
        return answer

    def WatchRoutes(
        self, request: route_service_pb2.WatchRoutesRequest, _: Context
    ) -> AsyncIterator[route_service_pb2.WatchRoutesResponse]:
        """Stream every route as it is now, then each change."""
        # Itself, not passed on item by item: what is closed early then ends here and now, and not with the collector.
        return self._watches.routes(request.vm_id)

    def WatchTraffic(
        self, request: route_service_pb2.WatchTrafficRequest, _: Context
    ) -> AsyncIterator[route_service_pb2.WatchTrafficResponse]:
        """Stream how much each route is asked for, once a second."""
        return self._watches.traffic(request.vm_id)

    async def ActivateRoute(
        self, request: route_service_pb2.ActivateRouteRequest, _: Context
    ) -> route_service_pb2.ActivateRouteResponse:
        """Start what a request waits for, if its policy allows, and say what that is."""
        found = await self._routes.activate(request.user_id, request.prefix)
        answer = route_service_pb2.ActivateRouteResponse(
            route=encode.route(found.route), vm_state=encode.VM_STATES[found.vm_state]
        )
        if found.retry_after is not None:
            answer.retry_after.FromTimedelta(found.retry_after)
        return answer


def _switched(route: CurrentRoute) -> route_service_pb2.SwitchRouteResponse:
    return route_service_pb2.SwitchRouteResponse(route=encode.route(route))
