"""Positions in lists, as page tokens carry them."""

from __future__ import annotations

from datetime import datetime

from cellmesh.hypervisor.domain.vm import Vm
from cellmesh.hypervisor.lifecycle.routes import Position


def vm_cursor(vm: Vm) -> str:
    """Return where a list of VMs goes on after this one."""
    return f"{vm.create_time.isoformat()} {vm.vm_id}"


def after_vm(position: str) -> tuple[datetime, str]:
    """Return the time of creation and the id in a position; it was signed, so it is one of ours."""
    time, vm_id = position.split(" ")
    return datetime.fromisoformat(time), vm_id


def route_cursor(position: Position) -> str:
    """Return a position in a list of routes in writing."""
    created, vm_id, prefix = position
    return f"{created.isoformat()} {vm_id} {prefix}"


def after_route(position: str) -> Position:
    """Return the position of `route_cursor`; it was signed, so it is one of ours."""
    time, vm_id, prefix = position.split(" ")
    return datetime.fromisoformat(time), vm_id, prefix
