"""Notifies waiters of changes, by key: a hint to read again, never the change itself, so that none can be lost."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

ALL = "*"
"""Every key."""


class ChangedKeys:
    """The keys that changed since they were last taken."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._some = asyncio.Event()

    def add(self, keys: Collection[str]) -> None:
        """Note that these changed."""
        self._keys.update(keys)
        self._some.set()

    async def take(self) -> Collection[str]:
        """Return the keys that changed, once there are any."""
        await self._some.wait()
        self._some.clear()
        taken, self._keys = self._keys, set()
        return taken


class Changes:
    """Notifies those who wait for a change of a key, or of any key (`ALL`), after each commit that changed it."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._collectors: set[ChangedKeys] = set()

    @contextmanager
    def collected(self) -> Iterator[ChangedKeys]:
        """Collect the keys that change, for a reader of all of them that cannot read each every time."""
        changed = ChangedKeys()
        self._collectors.add(changed)
        try:
            yield changed
        finally:
            self._collectors.discard(changed)

    @contextmanager
    def watched(self, key: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set after each change of `key`; clear it before reading."""
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
        """Notify those who wait for these keys, or for any."""
        if keys:
            for collector in self._collectors:
                collector.add(keys)
            for key in (*keys, ALL):
                for event in self._watchers.get(key, ()):
                    event.set()
