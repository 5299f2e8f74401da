"""Since when requests for a route have been waiting, for the page that counts the seconds."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from cellmesh.hypervisor.activator.asked import RouteKey

FORGOTTEN_SECONDS = 60.0
"""Who has not asked for this long has gone; the next one's wait is a new one."""
_MOST = 4096


@dataclass(slots=True)
class _Wait:
    since: float
    seen: float


class Waits:
    """The routes that are waited for, as many as there is room for; the one asked for longest ago goes first."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, most: int = _MOST) -> None:
        self._clock = clock
        self._most = most
        self._waits: OrderedDict[RouteKey, _Wait] = OrderedDict()

    def seconds(self, route: RouteKey) -> float:
        """Note that a route is waited for, and return for how long it has been."""
        now = self._clock()
        wait = self._waits.get(route)
        if wait is None or now - wait.seen > FORGOTTEN_SECONDS:
            wait = self._waits[route] = _Wait(since=now, seen=now)
        wait.seen = now
        self._waits.move_to_end(route)
        while len(self._waits) > self._most:
            self._waits.popitem(last=False)
        return now - wait.since

    def over(self, route: RouteKey) -> None:
        """Note that a route is not waited for any more."""
        self._waits.pop(route, None)

    def __len__(self) -> int:
        return len(self._waits)
