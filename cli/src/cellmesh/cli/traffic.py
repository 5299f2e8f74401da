"""How much each route is asked for: the edge's counters, turned into rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellmesh.api.hypervisor.v1 import route_service_pb2
from cellmesh.cli import units
from cellmesh.cli.connection import STREAM_SECONDS, Node, Stream, resumed, streaming
from cellmesh.cli.output import Cell, Output, rich_table
from cellmesh.cli.render import SHORT_ID

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

COLUMNS = ("VM", "PREFIX", "REQ/S", "ERR/S", "ACTIVE", "DOWN/S", "UP/S", "REQUESTS", "ERRORS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """One route's counters, and how fast they grow."""

    now: route_service_pb2.RouteTraffic
    requests: float
    """Requests a second."""
    server_errors: float
    """Answers of 500 or above a second."""
    received_bytes: float
    """Bytes from the container a second."""
    sent_bytes: float
    """Bytes to the container a second."""

    def row(self) -> list[Cell]:
        """Return the row under COLUMNS."""
        return [
            Cell(text=self.now.vm_id[:SHORT_ID]),
            Cell(text=self.now.prefix),
            Cell(text=f"{self.requests:.1f}", style="green" if self.requests else ""),
            Cell(text=f"{self.server_errors:.1f}", style="red" if self.server_errors else ""),
            Cell(text=str(self.now.active)),
            Cell(text=_size(self.received_bytes)),
            Cell(text=_size(self.sent_bytes)),
            Cell(text=str(self.now.requests)),
            Cell(text=str(self.now.server_errors)),
        ]


class Rates:
    """Turns counters into rates; a counter that went back began anew, as the edge did."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._before: dict[tuple[str, str], route_service_pb2.RouteTraffic] = {}
        self._then: float | None = None

    def of(self, answer: route_service_pb2.WatchTrafficResponse) -> list[Rate]:
        """Return the rates since the answer before this, the busiest route first; all 0 for the first answer."""
        now = self._clock()
        seconds = 0.0 if self._then is None else now - self._then
        rates = [self._rate(line, seconds) for line in answer.traffic]
        self._then = now
        self._before = {(line.vm_id, line.prefix): line for line in answer.traffic}
        return sorted(rates, key=lambda rate: (-rate.requests, -rate.now.active, -rate.now.requests))

    def _rate(self, line: route_service_pb2.RouteTraffic, seconds: float) -> Rate:
        before = self._before.get((line.vm_id, line.prefix), route_service_pb2.RouteTraffic())
        if line.requests < before.requests:
            before = route_service_pb2.RouteTraffic()

        def each_second(count: int, then: int) -> float:
            return max(0, count - then) / seconds if seconds > 0 else 0.0

        return Rate(
            now=line,
            requests=each_second(line.requests, before.requests),
            server_errors=each_second(line.server_errors, before.server_errors),
            received_bytes=each_second(line.received_bytes, before.received_bytes),
            sent_bytes=each_second(line.sent_bytes, before.sent_bytes),
        )


class TrafficView:
    """Prints the traffic: a table that stays in its place on a terminal, one a second elsewhere."""

    def __init__(self, node: Node, output: Output) -> None:
        self._node = node
        self._output = output
        self._rates = Rates()
        self._shown: list[Rate] = []

    async def run(self, vm_id: str = "") -> None:
        """Show the traffic of all VMs, or of one, until cancelled."""
        with self._live() as live:
            stream = resumed(lambda: self._open(vm_id), on_break=lambda: self._output.note("The edge went away."))
            async with aclosing(stream) as messages:
                async for message in messages:
                    self._show(message, live)

    def _open(self, vm_id: str) -> Stream[route_service_pb2.WatchTrafficResponse]:
        request = route_service_pb2.WatchTrafficRequest(vm_id=vm_id)
        return streaming(self._node.routes.WatchTraffic(request, timeout=STREAM_SECONDS))

    def _show(self, message: route_service_pb2.WatchTrafficResponse, live: Live | None) -> None:
        if self._output.json:
            self._output.message(message)
            return
        self._shown = self._rates.of(message)
        if live is not None:
            live.refresh()
        else:
            self._output.table(COLUMNS, [rate.row() for rate in self._shown])

    def _live(self) -> Live | nullcontext[None]:
        if self._output.json or not self._output.is_terminal:
            return nullcontext()
        from rich.live import Live

        return Live(get_renderable=self._table, console=self._output.console(), refresh_per_second=1)

    def _table(self) -> RenderableType:
        return rich_table(COLUMNS, [rate.row() for rate in self._shown])


def _size(count: float) -> str:
    return units.size(round(count)).replace(" ", "")
