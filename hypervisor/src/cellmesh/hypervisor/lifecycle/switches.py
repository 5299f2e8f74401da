"""Switching a route: committed first, then served by the edge; what the edge refuses is undone."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from cellmesh.hypervisor.domain import audit, event
from cellmesh.hypervisor.domain.container import Container
from cellmesh.hypervisor.domain.errors import (
    ContainerNotFound,
    EdgeUnreachable,
    GenerationNotFound,
    NodeShuttingDown,
    RouteChanged,
    RouteNotFound,
    RouteRefused,
    VmDeleting,
    VmNotFound,
)
from cellmesh.hypervisor.domain.route import Drain, Route, RouteTarget, current
from cellmesh.hypervisor.domain.vm import DesiredState
from cellmesh.hypervisor.lifecycle.drains import SETTLES, Drains, Edge
from cellmesh.hypervisor.store import Store, Transaction
from cellmesh.mesh.errors import InternalError, MeshError
from cellmesh.service.intent import Answer, Intent
from cellmesh.service.store import Decision

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Where a route is to lead, if it still has `expected_revision` (0 is any), and when to drain what it leaves."""

    vm_id: str
    prefix: str
    target: RouteTarget
    expected_revision: int = 0
    drain_timeout: timedelta | None = None


class Switches:
    """Switches routes while `run` runs."""

    def __init__(self, *, store: Store, edge: Edge, failpoint: Callable[[str], None]) -> None:
        self._store = store
        self._edge = edge
        self._drains = Drains(store=store, edge=edge)
        self._failpoint = failpoint
        self._tasks: asyncio.TaskGroup | None = None
        self._context = contextvars.Context()
        # Where routes led that are being switched: the last target that no switch under way has put in doubt.
        self._proven: dict[tuple[str, str], RouteTarget] = {}

    async def run(self) -> None:
        """Own what goes on after a caller has gone, until cancelled."""
        # None of it may inherit the deadline of the call it began in.
        self._context = contextvars.copy_context()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await self._drains.run()
            finally:
                self._tasks = None

    async def served(self, intent: Intent[Any], wish: Wish, revision: int, *, patience: float) -> None:
        """Return once a switch, which made the route's `revision`, is served; at most `patience` seconds later.

        Raises RouteRefused, EdgeUnreachable.
        """
        settling = self._begin(self._settle(intent, wish, revision))
        done, _ = await asyncio.wait({settling}, timeout=patience)
        if not done:
            raise EdgeUnreachable("The edge did not confirm in time; what was stored takes effect once it does.")
        if settling.cancelled():
            raise NodeShuttingDown
        if (error := settling.result()) is not None:
            raise error

    async def switch(self, intent: Intent[Answer], wish: Wish) -> Answer:
        """Store where a route is to lead, with what is to be drained of what it leaves.

        The intent makes its answer of the route as it is then (CurrentRoute). Raises VmNotFound, VmDeleting,
        RouteNotFound, RouteChanged, ContainerNotFound, GenerationNotFound, RequestIdReused, and RouteRefused if the
        edge refused this very switch.
        """
        async with self._store.transaction(alone=True) as tx:
            if (answer := await tx.answered(intent)) is not None:
                return answer
            # Nobody else writes meanwhile, so what was committed last is what would be read: three queries less.
            mirror = self._store.mirror
            if (vm := mirror.vm(wish.vm_id)) is None:
                raise VmNotFound(wish.vm_id)
            if vm.desired is DesiredState.DELETED:
                raise VmDeleting(wish.vm_id)
            routes = {route.route.prefix: route.route for route in mirror.routes(wish.vm_id)}
            if (before := routes.get(wish.prefix)) is None:
                raise RouteNotFound(wish.vm_id, wish.prefix)
            if wish.expected_revision not in (0, before.revision):
                raise RouteChanged(wish.prefix, expected=wish.expected_revision, found=before.revision)
            containers = {container.name: container for container in mirror.containers(wish.vm_id)}
            container = _target(containers, wish)
            route = before
            if route.target != wish.target:
                switched = event.RouteSwitched(prefix=wish.prefix, origin=route.target, target=wish.target)
                route = await tx.switch_route(
                    replace(route, target=wish.target), switched, epoch=vm.epoch, generation=container.generation
                )
                await tx.cancel_drains(wish.vm_id, wish.prefix, container.name)
                if (drain := _drain_of(before, containers, wish, tx.now)) is not None:
                    await tx.put_drain(drain)
                    tx.follow_ups.append(self._drains.look)
            await _audit(tx, wish)
            answer = await tx.answer(intent, current(route, vm, container))
        self._proven.setdefault((wish.vm_id, wish.prefix), before.target)
        self._failpoint("switch.committed")
        return answer

    def _begin(self, what: Coroutine[Any, Any, MeshError | None]) -> asyncio.Task[MeshError | None]:
        if self._tasks is None:
            what.close()
            raise NodeShuttingDown
        return self._tasks.create_task(what, context=self._context.copy())

    async def _settle(self, intent: Intent[Any], wish: Wish, revision: int) -> MeshError | None:
        """Wait until a switch is served, or undo it; return what went wrong, as nobody may be there to be told."""
        try:
            await self._edge.served(wish.vm_id, wish.prefix, within=SETTLES)
        except RouteRefused as error:
            return await self._undo(intent, wish, revision, error)
        except EdgeUnreachable as error:
            self._prove(wish, revision)
            return error
        except Exception as error:
            return self._failed(wish, error)
        self._prove(wish, revision)
        return None

    def _prove(self, wish: Wish, revision: int) -> None:
        """Note that nothing is to be undone, unless a later switch of the route is under way."""
        stored = next((r.route for r in self._store.mirror.routes(wish.vm_id) if r.route.prefix == wish.prefix), None)
        if stored is None or stored.revision == revision:
            self._proven.pop((wish.vm_id, wish.prefix), None)

    async def _undo(self, intent: Intent[Any], wish: Wish, revision: int, error: RouteRefused) -> MeshError:
        """Let a route lead where it led before, unless it was switched again, and keep the refusal as the answer."""
        try:
            async with self._store.transaction() as tx:
                vm = await tx.vm(wish.vm_id)
                now = await _route(tx, wish)
                proven = self._proven.get((wish.vm_id, wish.prefix))
                if vm is not None and now is not None and now.revision == revision and proven is not None:
                    refused = event.RouteRefused(prefix=wish.prefix, target=wish.target, message=error.said)
                    await tx.switch_route(
                        replace(now, target=proven), refused, epoch=vm.epoch, generation=wish.target.generation
                    )
                    await tx.cancel_drains(wish.vm_id, wish.prefix, proven.container)
                    del self._proven[wish.vm_id, wish.prefix]
                await _audit(tx, wish, Decision.FAILED)
                await tx.refuse(intent, error)
        except Exception as fault:
            return self._failed(wish, fault)
        return error

    def _failed(self, wish: Wish, error: Exception) -> MeshError:
        _log.error("route.switch_failed", vm_id=wish.vm_id, prefix=wish.prefix, exc_info=error)
        return InternalError("The route was stored; by a fault of ours it could not be told whether it is served.")


def _drain_of(before: Route, containers: Mapping[str, Container], wish: Wish, now: datetime) -> Drain | None:
    """Return what a route leaves, if that is to be drained."""
    leaves = containers.get(before.target.container)
    if leaves is None or wish.drain_timeout is None:
        return None
    return Drain(
        vm_id=before.vm_id,
        prefix=before.prefix,
        container=leaves.name,
        generation=leaves.generation,
        due=now + wish.drain_timeout,
    )


async def _audit(tx: Transaction, wish: Wish, decision: Decision = Decision.ALLOWED) -> None:
    await tx.audit(
        audit.SWITCH_ROUTE,
        resource=audit.vm_resource(wish.vm_id),
        decision=decision,
        facts={
            "prefix": wish.prefix,
            "container": wish.target.container,
            "generation": wish.target.generation,
        },
    )


async def _route(tx: Transaction, wish: Wish) -> Route | None:
    return next((route for route in await tx.routes(wish.vm_id) if route.prefix == wish.prefix), None)


def _target(containers: Mapping[str, Container], wish: Wish) -> Container:
    name, generation = wish.target.container, wish.target.generation
    container = containers.get(name)
    if container is None:
        raise ContainerNotFound(wish.vm_id, name)
    if generation not in (0, container.generation):
        raise GenerationNotFound(
            f"Container {name} is in generation {container.generation}, and no other runs; lead the route there, or "
            "to 0 to follow the container."
        )
    return container
