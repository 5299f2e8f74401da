"""The routes of the node, as they are from moment to moment."""

from __future__ import annotations

from contextlib import aclosing

from cellmesh.api.hypervisor.v1 import route_pb2, route_service_pb2
from cellmesh.cli import render
from cellmesh.cli.connection import STREAM_SECONDS, Node, Stream, resumed, streaming
from cellmesh.cli.output import Cell, Output

_Key = tuple[str, str]


class RouteWatch:
    """The routes of a node, kept current by a watch that survives broken streams.

    A watch that is opened again sends everything anew, so what did not change meanwhile is not printed again, and what
    is not sent again is gone.
    """

    def __init__(self, node: Node, output: Output) -> None:
        self._node = node
        self._output = output
        self._routes: dict[_Key, route_pb2.Route] = {}
        self._sent: set[_Key] = set()

    async def changes(self, vm_id: str = "") -> None:
        """Follow the routes, or those of one VM, until cancelled; print each change."""
        stream = resumed(lambda: self._open(vm_id), on_break=lambda: self._output.note("Watch broke; resuming."))
        async with aclosing(stream) as messages:
            async for message in messages:
                self._take(message)

    def _open(self, vm_id: str) -> Stream[route_service_pb2.WatchRoutesResponse]:
        self._sent.clear()
        request = route_service_pb2.WatchRoutesRequest(vm_id=vm_id)
        return streaming(self._node.routes.WatchRoutes(request, timeout=STREAM_SECONDS))

    def _take(self, message: route_service_pb2.WatchRoutesResponse) -> None:
        match message.WhichOneof("item"):
            case "route":
                self._there(message.route, message)
            case "removed":
                self._gone(message.removed)
            case "bookmark":
                if message.bookmark.caught_up:
                    for key in self._routes.keys() - self._sent:
                        self._gone(self._routes[key])
                if self._output.json:
                    self._output.message(message)

    def _there(self, route: route_pb2.Route, message: route_service_pb2.WatchRoutesResponse) -> None:
        key = (route.vm_id, route.prefix)
        self._sent.add(key)
        if self._routes.get(key) == route:
            return
        self._routes[key] = route
        if self._output.json:
            self._output.message(message)
        else:
            self._output.styled(*render.route_cells(route))

    def _gone(self, route: route_pb2.Route) -> None:
        self._routes.pop((route.vm_id, route.prefix), None)
        if self._output.json:
            removed = route_pb2.Route(vm_id=route.vm_id, user_id=route.user_id, prefix=route.prefix)
            self._output.message(route_service_pb2.WatchRoutesResponse(removed=removed))
        else:
            self._output.styled(*render.route_subject(route), Cell(text="GONE", style="dim"))
