"""What routes have left, and is to be closed when its time has come: stored, so that it outlives the hypervisor."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Protocol

import structlog

from cellmesh.hypervisor.domain.errors import EdgeUnreachable, RouteRefused
from cellmesh.hypervisor.domain.route import Drain
from cellmesh.hypervisor.store import Store

SETTLES = timedelta(seconds=10)
"""What the edge has to take a switch or to refuse it; whoever asked for it may have gone before."""
_LOOKS_AGAIN = timedelta(seconds=1)
_log = structlog.get_logger()


class Edge(Protocol):
    """The edge, which by itself follows what is committed."""

    async def served(self, vm_id: str, prefix: str, *, within: timedelta) -> None:
        """Return once a route is served as it is committed. Raises RouteRefused, EdgeUnreachable."""

    async def drain(self, vm_id: str, container: str, generation: int) -> None:
        """Close the connections that are open to one generation of a container."""


class Drains:
    """Drains what is due while `run` runs."""

    def __init__(self, *, store: Store, edge: Edge) -> None:
        self._store = store
        self._edge = edge
        self._news = asyncio.Event()

    def look(self) -> None:
        """Look again: a drain was stored."""
        self._news.set()

    async def run(self) -> None:
        """Drain what this hypervisor and those before it were asked to, each at its time, until cancelled."""
        while True:
            self._news.clear()
            try:
                wait = await self._drain_due()
            except Exception as error:
                _log.error("route.drains_failed", exc_info=error)
                wait = _LOOKS_AGAIN
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if wait is None else wait.total_seconds()):
                    await self._news.wait()

    async def _drain_due(self) -> timedelta | None:
        """Drain what is due and return how long to wait for what is not, None if there is nothing."""
        async with self._store.reading() as reading:
            drains = await reading.drains()
        waits = []
        for drain in drains:
            early = drain.due - self._store.now()
            if early > timedelta():
                waits.append(early)
            elif not await self._drain(drain):
                waits.append(_LOOKS_AGAIN)
        return min(waits, default=None)

    async def _drain(self, drain: Drain) -> bool:
        """Close what is open to a generation, unless a route leads to it again; False if the edge is not ready."""
        try:
            # Who is sent away before the edge leads elsewhere comes back the same way.
            await self._edge.served(drain.vm_id, drain.prefix, within=SETTLES)
        except (EdgeUnreachable, RouteRefused):
            return False
        try:
            if not self._is_led_to(drain):
                await self._edge.drain(drain.vm_id, drain.container, drain.generation)
        except Exception as error:
            # What was not closed stays open, as it would without a drain.
            _log.error("route.drain_failed", vm_id=drain.vm_id, container=drain.container, exc_info=error)
        async with self._store.transaction() as tx:
            await tx.remove_drain(drain)
        return True

    def _is_led_to(self, drain: Drain) -> bool:
        targets = (route.route.target for route in self._store.mirror.routes(drain.vm_id))
        return any(t.container == drain.container and t.generation in (0, drain.generation) for t in targets)
