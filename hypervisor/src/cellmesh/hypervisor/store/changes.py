"""Who waits for a change, by VM: a hint to look again, never the news itself, so none can be lost."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

ALL = "*"


class News:
    """The keys that changed since they were last taken."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._some = asyncio.Event()

    def add(self, keys: Collection[str]) -> None:
        """Note that these changed."""
        self._keys.update(keys)
        self._some.set()

    async def take(self) -> Collection[str]:
        """Return what changed, as soon as anything did."""
        await self._some.wait()
        self._some.clear()
        taken, self._keys = self._keys, set()
        return taken


class Changes:
    """Wakes whoever watches a VM, or everything (`ALL`), after each commit that touched it."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._collectors: set[News] = set()

    @contextmanager
    def collected(self) -> Iterator[News]:
        """Yield what tells which keys changed, for one who looks after all of them and cannot look at each."""
        news = News()
        self._collectors.add(news)
        try:
            yield news
        finally:
            self._collectors.discard(news)

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
            for news in self._collectors:
                news.add(keys)
            for key in (*keys, ALL):
                for event in self._watchers.get(key, ()):
                    event.set()
