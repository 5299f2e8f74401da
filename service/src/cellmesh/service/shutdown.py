"""The end of calls that would otherwise outlast their service: with an error that says so, not with a broken stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from cellmesh.mesh.errors import MeshError

_PATIENCE = 1.0
_FLUSH = 0.2


class Shutdown:
    """Ends every wait and stream that is entered, once it begins, with the error that `error` makes."""

    def __init__(self, error: Callable[[], MeshError]) -> None:
        self._error = error
        self._begun = False
        self._open: set[asyncio.Timeout] = set()
        self._left = asyncio.Event()

    async def begin(self) -> None:
        """End what is entered now and whatever is entered later; return once all of it has ended, or soon after."""
        self._begun = True
        now = asyncio.get_running_loop().time()
        for limit in self._open:
            limit.reschedule(now)
        # Connections are closed next; their clients should have heard why by then.
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while self._open:
                    self._left.clear()
                    await self._left.wait()
        # Each has ended, but its status is written a moment later, and gRPC does not say when.
        await asyncio.sleep(_FLUSH)

    @asynccontextmanager
    async def ends(self) -> AsyncIterator[None]:
        """Run inside until the service stops; then its error is raised there."""
        if self._begun:
            raise self._error()
        limit = asyncio.timeout(None)
        self._open.add(limit)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._error() from None
        finally:
            self._open.discard(limit)
            self._left.set()
