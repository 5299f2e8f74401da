"""What a node's database says happened, held against what it says is: each fault by the invariant it breaks."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from cellmesh.hypervisor.domain.container import Container
from cellmesh.hypervisor.domain.event import ContainerStateChanged, RouteSwitched, VmStateChanged
from cellmesh.hypervisor.domain.route import Route, default_routes, route_of_container
from cellmesh.hypervisor.domain.vm import TRANSITIONS, Vm, VmState
from cellmesh.hypervisor.store import payloads, rows
from support.invariants import Broken, Invariant

_ALLOWED = {(row.origin, row.target) for row in TRANSITIONS}


class Ledger:
    """Reads a node's database from outside, whether its hypervisor lives or not."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "hypervisor.db"

    def vm(self, vm_id: str) -> Vm | None:
        """Return the VM as stored, or None."""
        found = self._rows("SELECT * FROM vms WHERE vm_id = ?", vm_id)
        return rows.vm_from_row(found[0]) if found else None

    def vm_of_user(self, user_id: str) -> Vm | None:
        """Return the user's VM as stored, or None."""
        found = self._rows("SELECT * FROM vms WHERE user_id = ?", user_id)
        return rows.vm_from_row(found[0]) if found else None

    def containers(self, vm_id: str) -> list[Container]:
        """Return the containers of a VM as stored."""
        return [rows.container_from_row(row) for row in self._rows("SELECT * FROM containers WHERE vm_id = ?", vm_id)]

    def faults(self, vm_id: str) -> list[Broken]:
        """Say what is wrong with a VM's story."""
        with closing(self._open()) as connection:
            connection.execute("BEGIN")  # one moment for both: the hypervisor may be writing
            stored = _query(connection, "SELECT * FROM vms WHERE vm_id = ?", vm_id)
            containers = _query(connection, "SELECT * FROM containers WHERE vm_id = ?", vm_id)
            routes = _query(connection, "SELECT * FROM routes WHERE vm_id = ?", vm_id)
            entries = _query(connection, "SELECT * FROM events WHERE vm_id = ? ORDER BY sequence", vm_id)
        found = list(_vm_faults(entries, rows.vm_from_row(stored[0]) if stored else None))
        found += [fault for row in containers for fault in _container_faults(entries, rows.container_from_row(row))]
        if stored:
            found += _route_faults(
                entries,
                {row["prefix"]: rows.route_from_row(row) for row in routes},
                rows.vm_from_row(stored[0]),
                [row["name"] for row in containers],
            )
        return [Broken(invariant, f"VM {vm_id}: {what}") for invariant, what in found]

    def _rows(self, query: str, key: str) -> list[dict[str, Any]]:
        with closing(self._open()) as connection:
            return _query(connection, query, key)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, isolation_level=None)
        connection.row_factory = sqlite3.Row
        return connection


def _query(connection: sqlite3.Connection, query: str, key: str) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(query, (key,))]


def _vm_faults(entries: list[dict[str, Any]], stored: Vm | None) -> Iterator[tuple[Invariant, str]]:
    """Replay the entries of a VM: they must lead, step by step, to what is stored."""
    state: VmState | None = None
    last: Vm | None = None
    for entry in entries:
        change = payloads.from_json(entry["kind"], entry["payload"]) if entry["kind"] else None
        if isinstance(change, VmStateChanged):
            if change.origin is not state:
                yield Invariant.EVENTS, f"an event says it came from {change.origin}, the one before left it {state}"
            if change.origin is not None and (change.origin, change.target) not in _ALLOWED:
                yield Invariant.EVENTS, f"it went from {change.origin} to {change.target}"
            state = change.target
        if entry["vm"] is None:
            continue
        vm = rows.vm_from_json(entry["vm"])
        if vm.state is not state:
            yield Invariant.EVENTS, f"it was {vm.state} when the events said {state}"
        if last is not None and vm.revision != last.revision + 1:
            yield Invariant.ENTRIES, f"revision {vm.revision} follows {last.revision}"
        started = isinstance(change, VmStateChanged) and change.target is VmState.STARTING
        before = 0 if last is None else last.epoch
        if vm.epoch != before + started:
            yield Invariant.EPOCHS, f"epoch {vm.epoch} follows {before} as it becomes {vm.state}"
        last = vm
    if stored is None and state is not VmState.DELETED:
        yield Invariant.EVENTS, f"it is gone, and its events end with {state}"
    if stored is not None and stored != last:
        yield Invariant.ENTRIES, f"stored is {stored}, the log ends with {last}"


def _container_faults(entries: list[dict[str, Any]], stored: Container) -> Iterator[tuple[Invariant, str]]:
    state, generation = None, 0
    for entry in entries:
        change = payloads.from_json(entry["kind"], entry["payload"]) if entry["kind"] else None
        if entry["container_name"] != stored.name or not isinstance(change, ContainerStateChanged):
            continue
        if change.origin is not state:
            yield Invariant.EVENTS, f"container {stored.name} came from {change.origin}, the event before says {state}"
        if entry["generation"] < generation:
            yield Invariant.EVENTS, f"generation {entry['generation']} of container {stored.name} follows {generation}"
        state, generation = change.target, entry["generation"]
    now = (stored.status.state, stored.generation)
    if (state, generation) != now:
        yield Invariant.EVENTS, f"container {stored.name} is {now}, its events end with {(state, generation)}"


def _route_faults(
    entries: list[dict[str, Any]], stored: dict[str, Route], vm: Vm, containers: list[str]
) -> Iterator[tuple[Invariant, str]]:
    """Replay the switches of a VM: from where its routes led at first they must lead to where these lead now."""
    first = [route_of_container(vm.vm_id, name, vm.create_time) for name in containers]
    routes = [*default_routes(vm.vm_id, vm.create_time), *(route for route in first if route is not None)]
    led = {route.prefix: (route.target, 1) for route in routes}
    for entry in entries:
        change = payloads.from_json(entry["kind"], entry["payload"]) if entry["kind"] else None
        if not isinstance(change, RouteSwitched):
            continue
        target, revision = led[change.prefix]
        if change.origin != target:
            yield Invariant.ROUTES, f"{change.prefix} was switched from {change.origin}, it led to {target}"
        led[change.prefix] = change.target, revision + 1
    now = {route.prefix: (route.target, route.revision) for route in stored.values()}
    if now != led:
        yield Invariant.ROUTES, f"routes lead to {now}, the events to {led}"
