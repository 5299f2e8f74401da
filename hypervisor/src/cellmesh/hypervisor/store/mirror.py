"""What was committed last of each VM, in memory: keepers look at it far more often than it changes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar

from cellmesh.hypervisor.domain.container import Container
from cellmesh.hypervisor.domain.route import CurrentRoute, Route, current
from cellmesh.hypervisor.domain.vm import Vm
from cellmesh.hypervisor.store.transaction import Reading, Transaction

_Value = TypeVar("_Value")


class Mirror:
    """The VMs, containers and routes as committed. There is one writer, and it tells the mirror before anybody else."""

    def __init__(self) -> None:
        self._vms: dict[str, Vm] = {}
        self._vm_ids: dict[str, str] = {}
        self._containers: dict[str, dict[str, Container]] = {}
        self._routes: dict[str, dict[str, Route]] = {}

    async def load(self, reading: Reading) -> None:
        """Copy the state as it is at the start."""
        for vm in await reading.vms():
            self._put(vm)
            self._containers[vm.vm_id] = {container.name: container for container in await reading.containers(vm.vm_id)}
            self._routes[vm.vm_id] = {route.prefix: route for route in await reading.routes(vm.vm_id)}

    def apply(self, committed: Transaction) -> None:
        """Take over what a transaction stored, after its commit."""
        for (vm_id, name), container in committed.stored_containers.items():
            _put(self._containers.setdefault(vm_id, {}), name, container)
        for (vm_id, prefix), route in committed.stored_routes.items():
            _put(self._routes.setdefault(vm_id, {}), prefix, route)
        for vm_id, vm in committed.stored_vms.items():
            if vm is None:
                self._drop(vm_id)
            else:
                self._put(vm)

    def _put(self, vm: Vm) -> None:
        self._vms[vm.vm_id] = vm
        self._vm_ids[vm.user_id] = vm.vm_id

    def _drop(self, vm_id: str) -> None:
        if (vm := self._vms.pop(vm_id, None)) is not None:
            del self._vm_ids[vm.user_id]
        self._containers.pop(vm_id, None)
        self._routes.pop(vm_id, None)

    def vm(self, vm_id: str) -> Vm | None:
        """Return the VM, or None."""
        return self._vms.get(vm_id)

    def vm_of_user(self, user_id: str) -> Vm | None:
        """Return the user's VM, or None."""
        vm_id = self._vm_ids.get(user_id)
        return None if vm_id is None else self._vms[vm_id]

    def vms(self) -> Collection[Vm]:
        """Return all VMs, in no order; good until the next await."""
        return self._vms.values()

    def containers(self, vm_id: str) -> Sequence[Container]:
        """Return the containers of a VM, by name."""
        containers = self._containers.get(vm_id, {})
        return [containers[name] for name in sorted(containers)]

    def routes(self, vm_id: str) -> Sequence[CurrentRoute]:
        """Return the routes of a VM as they are now, by prefix; none if there is no such VM."""
        vm = self._vms.get(vm_id)
        if vm is None:
            return []
        containers = self._containers.get(vm_id, {})
        routes = sorted(self._routes.get(vm_id, {}).items())
        return [current(route, vm, containers.get(route.target.container)) for _, route in routes]


def _put(values: dict[str, _Value], key: str, value: _Value | None) -> None:
    if value is None:
        values.pop(key, None)
    else:
        values[key] = value
