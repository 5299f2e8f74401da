"""What is read of the node in one moment, and what is changed in one transaction."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Select, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from cellmesh.hypervisor.domain.container import Container
from cellmesh.hypervisor.domain.event import (
    ContainerDeleted,
    ContainerHealthChanged,
    ContainerOomKilled,
    ContainerStateChanged,
    Entry,
    NodeDrainChanged,
    Payload,
    RouteRefused,
    RouteSwitched,
    Subject,
    VmStateChanged,
)
from cellmesh.hypervisor.domain.route import Drain, Route
from cellmesh.hypervisor.domain.vm import COMMITTED_STATES, Vm, VmState
from cellmesh.hypervisor.store import payloads, rows
from cellmesh.hypervisor.store.schema import AGENT_BOOTS, CONTAINERS, DRAINS, EVENTS, NODE, ROUTES, VMS
from cellmesh.service import store
from cellmesh.service.store import Statements, Who, from_micros, to_micros
from cellmesh.service.store.connection import Connection

# The statements of every step of every VM are built once: building one costs more than SQLite takes to run it.
_VM = select(VMS).where(VMS.c.vm_id == bindparam("key"))
_VM_OF_USER = select(VMS).where(VMS.c.user_id == bindparam("key"))
_CONTAINERS = select(CONTAINERS).where(CONTAINERS.c.vm_id == bindparam("key")).order_by(CONTAINERS.c.name)
_ROUTES = select(ROUTES).where(ROUTES.c.vm_id == bindparam("key")).order_by(ROUTES.c.prefix)
_NODE = select(NODE)
_VM_COUNT = select(func.count()).select_from(VMS)
_MEMORY = select(func.coalesce(func.sum(VMS.c.memory_bytes), 0)).where(
    VMS.c.state.in_([state.value for state in COMMITTED_STATES])
)
_ADD_VM = insert(VMS)
_ADD_ROUTES = insert(ROUTES).inline()
_SAVE_ROUTE = update(ROUTES).where(ROUTES.c.vm_id == bindparam("key"), ROUTES.c.prefix == bindparam("path"))
_SAVE_VM = update(VMS).where(VMS.c.vm_id == bindparam("key"))
_DRAINS = select(DRAINS)
_PUT_DRAIN = upsert(DRAINS).on_conflict_do_update(
    index_elements=list(DRAINS.primary_key), set_={"due": upsert(DRAINS).excluded.due}
)
_REMOVE_DRAIN = delete(DRAINS).where(*(column == bindparam(column.name) for column in DRAINS.c))
_CANCEL_DRAINS = delete(DRAINS).where(
    *(column == bindparam(column.name) for column in (DRAINS.c.vm_id, DRAINS.c.prefix, DRAINS.c.container))
)


@functools.cache
def _entries(*, of_vm: bool, events_only: bool, vms_only: bool) -> Select[Any]:
    query = select(EVENTS).where(EVENTS.c.sequence > bindparam("after"))
    if of_vm:
        query = query.where(EVENTS.c.vm_id == bindparam("key"))
    if events_only:
        query = query.where(EVENTS.c.kind.is_not(None))
    if vms_only:
        query = query.where(EVENTS.c.vm.is_not(None))
    return query.order_by(EVENTS.c.sequence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What the store keeps of the node itself."""

    node_id: str
    draining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """The one boot of a guest that an epoch belongs to."""

    boot_id: str
    discard_layers: bool


class Reading(store.Reading):
    """The state of the node as it was at one moment."""

    async def vm(self, vm_id: str) -> Vm | None:
        """Return the VM, or None."""
        found = await self._connection.execute(_VM, {"key": vm_id})
        return rows.vm_from_row(dict(found[0])) if found else None

    async def vm_of_user(self, user_id: str) -> Vm | None:
        """Return the user's VM, or None."""
        found = await self._connection.execute(_VM_OF_USER, {"key": user_id})
        return rows.vm_from_row(dict(found[0])) if found else None

    async def vms(
        self, *, states: Collection[VmState] = (), after: tuple[datetime, str] | None = None, limit: int | None = None
    ) -> Sequence[Vm]:
        """Return VMs, oldest first, after the one that was created then and is called so."""
        query = select(VMS).order_by(VMS.c.create_time, VMS.c.vm_id).limit(limit)
        if states:
            query = query.where(VMS.c.state.in_([state.value for state in states]))
        if after is not None:
            created, vm_id = to_micros(after[0]), after[1]
            query = query.where(
                (VMS.c.create_time > created) | ((VMS.c.create_time == created) & (VMS.c.vm_id > vm_id))
            )
        return [rows.vm_from_row(dict(row)) for row in await self._connection.execute(query)]

    async def vm_count(self, state: VmState | None = None) -> int:
        """Return how many VMs there are, or how many are in one state."""
        query = _VM_COUNT if state is None else _VM_COUNT.where(VMS.c.state == state.value)
        return await self._connection.scalar(query)

    async def memory_committed(self) -> int:
        """Return the bytes of memory promised to VMs that run or may still run."""
        return await self._connection.scalar(_MEMORY)

    async def container(self, vm_id: str, name: str) -> Container | None:
        """Return the container, or None."""
        query = select(CONTAINERS).where(CONTAINERS.c.vm_id == vm_id, CONTAINERS.c.name == name)
        found = await self._connection.execute(query)
        return rows.container_from_row(dict(found[0])) if found else None

    async def containers(self, vm_id: str) -> Sequence[Container]:
        """Return the containers of a VM, by name."""
        found = await self._connection.execute(_CONTAINERS, {"key": vm_id})
        return [rows.container_from_row(dict(row)) for row in found]

    async def routes(self, vm_id: str) -> Sequence[Route]:
        """Return the routes of a VM, by prefix."""
        found = await self._connection.execute(_ROUTES, {"key": vm_id})
        return [rows.route_from_row(dict(row)) for row in found]

    async def drains(self) -> Sequence[Drain]:
        """Return what is to be drained, of all VMs."""
        return [rows.drain_from_row(dict(row)) for row in await self._connection.execute(_DRAINS)]

    async def boot(self, vm_id: str, epoch: int) -> Boot | None:
        """Return the boot an epoch belongs to, or None if no guest said Hello in it."""
        query = select(AGENT_BOOTS).where(AGENT_BOOTS.c.vm_id == vm_id, AGENT_BOOTS.c.epoch == epoch)
        found = await self._connection.execute(query)
        return Boot(boot_id=found[0]["boot_id"], discard_layers=found[0]["discard_layers"]) if found else None

    async def node(self) -> Node:
        """Return what is kept of the node."""
        (row,) = await self._connection.execute(_NODE)
        return Node(node_id=row["node_id"], draining=row["draining"])

    async def entries(
        self, *, after: int, limit: int, vm_id: str = "", events_only: bool = False, vms_only: bool = False
    ) -> Sequence[Entry]:
        """Return entries of the journal after a sequence, oldest first."""
        query = _entries(of_vm=bool(vm_id), events_only=events_only, vms_only=vms_only)
        values = {"key": vm_id} if vm_id else {}
        return [entry(row) for row in await self.rows(query, after=after, limit=limit, **values)]


def entry(row: Mapping[Any, Any]) -> Entry:
    """Return the entry of a row of the journal."""
    return Entry(
        sequence=row["sequence"],
        time=from_micros(row["time"]),
        subject=Subject(
            vm_id=row["vm_id"],
            container_name=row["container_name"],
            epoch=row["epoch"],
            generation=row["generation"],
        ),
        trace_id=row["trace_id"],
        payload=None if row["kind"] is None else payloads.from_json(row["kind"], row["payload"]),
        vm=None if row["vm"] is None else rows.vm_from_json(row["vm"]),
    )


class Transaction(store.Transaction, Reading):
    """Changes of the node that are committed together with their events, or not at all."""

    def __init__(
        self, connection: Connection, statements: Statements, *, now: datetime, trace_id: str, who: Who
    ) -> None:
        super().__init__(connection, statements, now=now, trace_id=trace_id, who=who)
        # What this transaction stored last, by VM, container and route; None is one that is gone.
        self.stored_vms: dict[str, Vm | None] = {}
        self.stored_containers: dict[tuple[str, str], Container | None] = {}
        self.stored_routes: dict[tuple[str, str], Route | None] = {}

    async def add_vm(self, vm: Vm) -> None:
        """Store a new VM."""
        await self._connection.execute(_ADD_VM, rows.vm_to_row(vm))
        await self._log_vm(vm, None)

    async def save_vm(self, vm: Vm, before: Vm) -> Vm:
        """Store a VM that was `before` and return it as stored; a DELETED one leaves only its last entry."""
        if vm == before:
            return vm
        vm = replace(vm, revision=before.revision + 1, update_time=self.now)
        if vm.state is VmState.DELETED:
            await self._connection.execute(delete(VMS).where(VMS.c.vm_id == vm.vm_id))
        else:
            self._connection.write(_SAVE_VM, {**rows.vm_to_row(vm), "key": vm.vm_id})
        await self._log_vm(vm, before)
        return vm

    async def _log_vm(self, vm: Vm, before: Vm | None) -> None:
        self.stored_vms[vm.vm_id] = None if vm.state is VmState.DELETED else vm
        payload: Payload | None = None
        if before is None or vm.state is not before.state:
            payload = VmStateChanged(
                origin=None if before is None else before.state,
                target=vm.state,
                reason=vm.reason.value,
                message=vm.message,
            )
        await self.log(Subject(vm_id=vm.vm_id, epoch=vm.epoch), payload, vm=vm)

    async def save_container(self, container: Container, before: Container | None) -> Container:
        """Store a container that was `before` (None: new) and return it as stored."""
        if container == before:
            return container
        container = replace(container, update_time=self.now)
        row = rows.container_to_row(container)
        await self._connection.execute(
            upsert(CONTAINERS).values(row).on_conflict_do_update(index_elements=["vm_id", "name"], set_=row)
        )
        subject = Subject(
            vm_id=container.vm_id,
            container_name=container.name,
            epoch=container.epoch,
            generation=container.generation,
        )
        for payload in _container_events(container, before):
            await self.log(subject, payload)
        self.touched.add(container.vm_id)
        self.stored_containers[container.vm_id, container.name] = container
        return container

    async def delete_container(self, container: Container, *, persistent_paths: bool) -> None:
        """Remove a container with the drains of routes to it; the journal says what was removed with it."""
        key = (container.vm_id, container.name)
        await self._connection.execute(
            delete(CONTAINERS).where(CONTAINERS.c.vm_id == key[0], CONTAINERS.c.name == key[1])
        )
        await self._connection.execute(delete(DRAINS).where(DRAINS.c.vm_id == key[0], DRAINS.c.container == key[1]))
        subject = Subject(
            vm_id=container.vm_id,
            container_name=container.name,
            epoch=container.epoch,
            generation=container.generation,
        )
        await self.log(subject, ContainerDeleted(persistent_paths=persistent_paths))
        self.stored_containers[key] = None

    async def delete_route(self, route: Route) -> None:
        """Remove a route; the journal has what made that necessary."""
        await self._connection.execute(
            delete(ROUTES).where(ROUTES.c.vm_id == route.vm_id, ROUTES.c.prefix == route.prefix)
        )
        self.touched.add(route.vm_id)
        self.stored_routes[route.vm_id, route.prefix] = None

    async def add_routes(self, routes: Sequence[Route]) -> None:
        """Store new routes of a VM; the journal has what made them necessary."""
        await self._connection.execute(_ADD_ROUTES, [rows.route_to_row(route) for route in routes])
        for route in routes:
            self.touched.add(route.vm_id)
            self.stored_routes[route.vm_id, route.prefix] = route

    async def switch_route(
        self, route: Route, payload: RouteSwitched | RouteRefused, *, epoch: int, generation: int
    ) -> Route:
        """Store where a route leads from now on, with why, and return it as stored."""
        route = replace(route, revision=route.revision + 1, update_time=self.now)
        row = {**rows.route_to_row(route), "key": route.vm_id, "path": route.prefix}
        self._connection.write(_SAVE_ROUTE, row)
        subject = Subject(
            vm_id=route.vm_id, container_name=payload.target.container, epoch=epoch, generation=generation
        )
        await self.log(subject, payload)
        self.stored_routes[route.vm_id, route.prefix] = route
        return route

    async def put_drain(self, drain: Drain) -> None:
        """Store what is to be drained; a later moment replaces an earlier one."""
        self._connection.write(_PUT_DRAIN, rows.drain_to_row(drain))

    async def remove_drain(self, drain: Drain) -> None:
        """Forget a drain, unless another moment was stored since."""
        self._connection.write(_REMOVE_DRAIN, rows.drain_to_row(drain))

    async def cancel_drains(self, vm_id: str, prefix: str, container: str) -> None:
        """Forget what a route to this container is to be drained of: it leads there again."""
        self._connection.write(_CANCEL_DRAINS, {"vm_id": vm_id, "prefix": prefix, "container": container})

    async def log(self, subject: Subject, payload: Payload | None, *, vm: Vm | None = None) -> None:
        """Append one entry to the journal."""
        kind, fields = (None, None) if payload is None else payloads.to_json(payload)
        values = {
            "vm_id": subject.vm_id,
            "container_name": subject.container_name,
            "epoch": subject.epoch,
            "generation": subject.generation,
            "kind": kind,
            "payload": fields,
            "vm": None if vm is None else rows.vm_to_json(vm),
        }
        await self.append(values, key=subject.vm_id)

    async def add_boot(self, vm_id: str, epoch: int, boot: Boot) -> None:
        """Store which boot an epoch belongs to."""
        values = {"vm_id": vm_id, "epoch": epoch, "boot_id": boot.boot_id, "discard_layers": boot.discard_layers}
        await self._connection.execute(insert(AGENT_BOOTS).values(**values, time=to_micros(self.now)))
        await self._connection.execute(
            delete(AGENT_BOOTS).where(AGENT_BOOTS.c.vm_id == vm_id, AGENT_BOOTS.c.epoch < epoch)
        )

    async def name_node(self, node_id: str) -> None:
        """Store the id of the node, unless it has one."""
        if not await self._connection.execute(_NODE):
            await self._connection.execute(insert(NODE).values(id=1, node_id=node_id, draining=False))

    async def set_draining(self, *, draining: bool) -> None:
        """Store whether the node takes new VMs."""
        before = await self.node()
        if before.draining != draining:
            await self._connection.execute(update(NODE).values(draining=draining))
            await self.log(Subject(), NodeDrainChanged(draining=draining))


def _container_events(container: Container, before: Container | None) -> list[Payload]:
    status, was = container.status, None if before is None else before.status
    found: list[Payload] = []
    renewed = before is None or before.generation != container.generation
    if was is None or status.state is not was.state or (renewed and before is not None):
        found.append(
            ContainerStateChanged(
                origin=None if was is None else was.state,
                target=status.state,
                reason=status.reason,
                message=status.message,
                exit_code=status.exit_code,
            )
        )
    if was is not None and status.health is not was.health and not renewed:
        found.append(ContainerHealthChanged(origin=was.health, target=status.health))
    if status.oom_kills > (0 if was is None or renewed else was.oom_kills):
        found.append(ContainerOomKilled(oom_kills=status.oom_kills))
    return found
