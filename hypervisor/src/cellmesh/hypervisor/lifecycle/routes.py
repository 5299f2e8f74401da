"""Where the paths of users lead, and what becomes of a request that nobody can answer yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cellmesh.hypervisor.domain.errors import NodeDraining, RouteNotFound, VmNotFound
from cellmesh.hypervisor.domain.route import CurrentRoute, RouteState, WaitReason, retry_after
from cellmesh.hypervisor.domain.vm import Vm, VmState
from cellmesh.hypervisor.lifecycle.vms import Vms, starts_on_request
from cellmesh.hypervisor.store import Store

Position = tuple[datetime, str, str]
"""Where a list of routes goes on: the creation of a VM, its id, and a prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What a request waits for; `retry_after` None is: until somebody acts."""

    route: CurrentRoute
    vm_state: VmState
    retry_after: timedelta | None


class Routes:
    """The routes of all VMs, as they were committed last."""

    def __init__(self, *, store: Store, vms: Vms) -> None:
        self._mirror = store.mirror
        self._vms = vms

    def get(self, vm_id: str, prefix: str) -> CurrentRoute:
        """Return a route. Raises VmNotFound, RouteNotFound."""
        if self._mirror.vm(vm_id) is None:
            raise VmNotFound(vm_id)
        for route in self._mirror.routes(vm_id):
            if route.route.prefix == prefix:
                return route
        raise RouteNotFound(vm_id, prefix)

    def list(self, *, vm_id: str, after: Position | None, limit: int) -> Sequence[tuple[Position, CurrentRoute]]:
        """Return up to `limit` routes and their positions, by VM from the oldest; an empty `vm_id` is every VM."""
        page: list[tuple[Position, CurrentRoute]] = []
        for vm in sorted(self._mirror.vms(), key=_age):
            if vm_id not in ("", vm.vm_id) or (after is not None and _age(vm) < after[:2]):
                continue
            for route in self._mirror.routes(vm.vm_id):
                position = (*_age(vm), route.route.prefix)
                if after is None or position > after:
                    page.append((position, route))
                if len(page) == limit:
                    return page
        return page

    async def activate(self, user_id: str, prefix: str) -> Activation:
        """Start the user's VM if a request is to do that, and return what the request waits for.

        Raises VmNotFound, RouteNotFound.
        """
        vm = self._of_user(user_id)
        route = self.get(vm.vm_id, prefix)
        if starts_on_request(vm):
            try:
                await self._vms.start_for_request(vm.vm_id)
            except NodeDraining as error:
                status = replace(route.status, reason=WaitReason.NODE_DRAINING.value, message=error.message)
                return Activation(route=replace(route, status=status), vm_state=vm.state, retry_after=None)
            vm = self._of_user(user_id)
            route = self.get(vm.vm_id, prefix)
        return Activation(
            route=route,
            vm_state=vm.state,
            retry_after=None
            if route.status.state is RouteState.SERVING
            else retry_after(route.status, vm, datetime.now(UTC)),
        )

    def _of_user(self, user_id: str) -> Vm:
        vm = self._mirror.vm_of_user(user_id)
        if vm is None:
            raise VmNotFound(f"of user {user_id}")
        return vm


def _age(vm: Vm) -> tuple[datetime, str]:
    return vm.create_time, vm.vm_id
