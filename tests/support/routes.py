"""Routes of a store's VM, and an edge of which a test decides what it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

from cellmesh.hypervisor.domain.container import ContainerState, ContainerStatus, Health
from cellmesh.hypervisor.domain.event import Payload, RouteRefused, RouteSwitched
from cellmesh.hypervisor.domain.route import CurrentRoute, RouteTarget, default_routes
from cellmesh.hypervisor.domain.vm import Vm, VmState
from cellmesh.hypervisor.lifecycle.switches import Switches, Wish
from cellmesh.hypervisor.store import Store
from cellmesh.service.intent import Intent
from support.intents import Answered
from support.vms import NOW, make_container, make_vm

LIVE, DEV = "sandbox-live", "sandbox-dev"
RUNS = ContainerStatus(state=ContainerState.RUNNING, health=Health.SERVING)


@dataclass(slots=True)
class FakeEdge:
    """Serves at once whatever is committed, unless a test holds it back or lets it refuse."""

    store: Store
    faults: list[Exception] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    served_targets: list[RouteTarget] = field(default_factory=list)
    drained: list[tuple[str, int]] = field(default_factory=list)
    drain_fault: Exception | None = None
    drain_seen: asyncio.Event = field(default_factory=asyncio.Event)
    counted: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.open.set()

    async def served(self, vm_id: str, prefix: str, *, within: timedelta) -> None:
        """Take what is committed now."""
        assert within > timedelta()
        fault = self.faults.pop(0) if self.faults else None
        self.asked.set()
        await self.open.wait()
        if fault is not None:
            raise fault
        self.served_targets.append(route(self.store, vm_id, prefix).route.target)

    async def drain(self, vm_id: str, container: str, generation: int) -> None:
        """Note what is drained."""
        assert self.store.mirror.vm(vm_id) is not None
        self.drained.append((container, generation))
        self.drain_seen.set()
        if self.drain_fault is not None:
            raise self.drain_fault

    async def traffic(self) -> Mapping[str, object]:
        """Return what the test counted."""
        if self.faults:
            raise self.faults.pop(0)
        return self.counted


def route(store: Store, vm_id: str, prefix: str = "/") -> CurrentRoute:
    """Return a route as committed last."""
    return next(route for route in store.mirror.routes(vm_id) if route.route.prefix == prefix)


async def add_cell(store: Store, **fields: object) -> Vm:
    """Store a VM that runs, with its routes, and both sandboxes in it; live is in generation 2, dev in 7."""
    vm = make_vm(**{"state": VmState.RUNNING, "epoch": 3, **fields})
    async with store.transaction() as tx:
        await tx.add_vm(vm)
        await tx.add_routes(default_routes(vm.vm_id, NOW))
        for slot, (name, generation) in enumerate(((LIVE, 2), (DEV, 7))):
            container = make_container(
                vm.vm_id, name, generation=generation, epoch=vm.epoch, status=RUNS, ingress_slot=slot
            )
            await tx.save_container(container, None)
    return vm


async def switch(switches: Switches, intent: Intent[Answered], wish: Wish, *, patience: float) -> CurrentRoute:
    """Switch a route, and return the answer once the route is served."""
    found: CurrentRoute = (await switches.switch(intent, wish)).value
    await switches.served(intent, wish, found.route.revision, patience=patience)
    return found


def wish(vm: Vm, container: str = DEV, generation: int = 0, **fields: object) -> Wish:
    """Return the wish that `/` leads to a container."""
    target = RouteTarget(container=container, generation=generation)
    return replace(Wish(vm_id=vm.vm_id, prefix="/", target=target), **fields)


async def told(store: Store) -> list[Payload]:
    """Return every event about a route, oldest first."""
    async with store.reading() as reading:
        entries = await reading.entries(after=0, limit=1000)
    return [entry.payload for entry in entries if isinstance(entry.payload, RouteSwitched | RouteRefused)]
