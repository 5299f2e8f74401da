"""Watches that are left early: what they hold is given back where they ran."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cellmesh.api.hypervisor.v1 import event_service_pb2, route_service_pb2, vm_service_pb2
from cellmesh.hypervisor.servicers.event_service import EventServicer
from cellmesh.hypervisor.servicers.route_service import RouteServicer
from cellmesh.hypervisor.servicers.vm_service import VmServicer

ABSENT: Any = None


class Endless:
    """Watches that go on for ever and count those that go on."""

    def __init__(self) -> None:
        self.open = 0

    async def vms(self, *_: object, **__: object) -> AsyncIterator[object]:
        """Yield for ever."""
        self.open += 1
        try:
            while True:
                yield object()
        finally:
            self.open -= 1

    events = routes = traffic = vms


def _vms(watches: Any) -> Any:
    servicer = VmServicer(ABSENT, watches=watches, pages=ABSENT, probes=ABSENT)
    return servicer.WatchVms(vm_service_pb2.WatchVmsRequest(), ABSENT)


def _events(watches: Any) -> Any:
    servicer = EventServicer(ABSENT, watches=watches, pages=ABSENT)
    return servicer.WatchEvents(event_service_pb2.WatchEventsRequest(), ABSENT)


def _routes(watches: Any) -> Any:
    servicer = RouteServicer(ABSENT, ABSENT, watches=watches, pages=ABSENT, shutdown=ABSENT)
    return servicer.WatchRoutes(route_service_pb2.WatchRoutesRequest(), ABSENT)


def _traffic(watches: Any) -> Any:
    servicer = RouteServicer(ABSENT, ABSENT, watches=watches, pages=ABSENT, shutdown=ABSENT)
    return servicer.WatchTraffic(route_service_pb2.WatchTrafficRequest(), ABSENT)


@pytest.mark.asyncio
@pytest.mark.parametrize("watch", [_vms, _events, _routes, _traffic])
async def test_a_watch_that_is_closed_is_over(watch: Callable[[Any], Any]) -> None:
    """Nothing of a watch is left to the collector, which would end it later and in another task."""
    watches = Endless()
    answers = watch(watches)
    await anext(answers)
    assert watches.open == 1
    await answers.aclose()
    assert watches.open == 0
