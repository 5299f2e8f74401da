"""Waking whoever waits for a change, however many they are."""

import asyncio


class Changes:
    """Something that changes; each waiter waits for the next change after the last it saw."""

    def __init__(self) -> None:
        self.version = 0
        self._next: asyncio.Future[None] | None = None

    def notify(self) -> None:
        """Wake all who wait."""
        self.version += 1
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    async def after(self, version: int) -> int:
        """Wait until the version is past this one; returns it."""
        while self.version == version:
            if self._next is None:
                self._next = asyncio.get_running_loop().create_future()
            # A waiter that is cancelled must not cancel the others.
            await asyncio.shield(self._next)
        return self.version
