"""Who waits for a change, by VM: a hint to look again, never the news itself, so none can be lost."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

ALL = "*"


class Changes:
    """Wakes whoever watches a VM, or everything (`ALL`), after each commit that touched it."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def watched(self, key: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set after each change of `key`; clear it before looking."""
        event = asyncio.Event()
        self._watchers.setdefault(key, set()).add(event)
        try:
            yield event
        finally:
            watchers = self._watchers[key]
            watchers.discard(event)
            if not watchers:
                del self._watchers[key]

    def notify(self, keys: Collection[str]) -> None:
        """Wake the watchers of these keys and of everything."""
        if keys:
            for key in (*keys, ALL):
                for event in self._watchers.get(key, ()):
                    event.set()
