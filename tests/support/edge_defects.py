"""Faults planted into a hypervisor that only who comes through its edge can notice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cellmesh.hypervisor.bridge import client
from cellmesh.hypervisor.domain.route import CurrentRoute
from cellmesh.hypervisor.edge.discovery import Discovery
from cellmesh.hypervisor.edge.endpoint import Endpoint, Endpoints
from cellmesh.hypervisor.edge.publisher import Publisher
from cellmesh.hypervisor.reconciler import vm as reconciler_of_a_vm
from cellmesh.hypervisor.reconciler.world import World
from cellmesh.hypervisor.vmm import Handle

_DIE_ALONG = """
import os, select, threading
parent = os.pidfd_open(os.getppid())
threading.Thread(target=lambda: (select.select([parent], [], []), os._exit(1)), daemon=True).start()
"""


def _bridges_die_along() -> None:
    client._START = f"{_DIE_ALONG}\n{client._START}"


def _hold_back_what_was_adopted() -> None:
    publish_all, endpoint = Publisher.publish_all, Publisher._endpoint
    adopted: set[str] = set()

    def cautious(self: Publisher) -> None:
        adopted.update(vm.vm_id for vm in self._mirror.vms())
        publish_all(self)

    def waiting(self: Publisher, current: CurrentRoute) -> Endpoint:
        return self._waiting if current.route.vm_id in adopted else endpoint(self, current)

    Publisher.publish_all = cautious  # type: ignore[method-assign]
    Publisher._endpoint = waiting  # type: ignore[method-assign]


def _end_vms_with_their_bridges() -> None:
    async def end(world: World, handle: Handle, _: Callable[[Handle], None]) -> None:
        await world.vmm.wait_bridge(handle)
        await world.vmm.kill(handle)

    reconciler_of_a_vm.keep_bridge = end


def _tell_only_who_is_there() -> None:
    put = Discovery.put

    def forgetful(self: Discovery, endpoints: Endpoints) -> int:
        return put(self, endpoints if self.connected else {})

    Discovery.put = forgetful  # type: ignore[method-assign]


def _wait_for_no_edge() -> None:
    async def at_once(*_: object, **__: object) -> None:
        await asyncio.sleep(0)

    Discovery.served = at_once  # type: ignore[method-assign]


EDGE_DEFECTS: dict[str, Callable[[], None]] = {
    "bridges die with their hypervisor": _bridges_die_along,
    "what was adopted is served no more": _hold_back_what_was_adopted,
    "a VM ends with its bridge": _end_vms_with_their_bridges,
    "an Envoy that is away misses what is wished": _tell_only_who_is_there,
    "a switch is not waited for": _wait_for_no_edge,
}
