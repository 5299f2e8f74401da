"""The end of calls that would otherwise outlast the hypervisor: told, not cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from cellmesh.hypervisor.domain.errors import NodeShuttingDown

_PATIENCE = 1.0
_FLUSH = 0.2


class Shutdown:
    """Ends every wait and stream that is entered, once it begins, with NodeShuttingDown."""

    def __init__(self) -> None:
        self._begun = False
        self._open: set[asyncio.Timeout] = set()
        self._left = asyncio.Event()

    async def begin(self) -> None:
        """End what is entered now and whatever is entered later; return once all of it has ended, or soon after."""
        self._begun = True
        now = asyncio.get_running_loop().time()
        for limit in self._open:
            limit.reschedule(now)
        # Connections are closed next; who is on one should have heard why by then.
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while self._open:
                    self._left.clear()
                    await self._left.wait()
        # What was left has ended, but its status is written a moment later; gRPC has no word for when it has gone out.
        await asyncio.sleep(_FLUSH)

    @asynccontextmanager
    async def ends(self) -> AsyncIterator[None]:
        """Run inside until the hypervisor stops; then NodeShuttingDown is raised there."""
        if self._begun:
            raise NodeShuttingDown
        limit = asyncio.timeout(None)
        self._open.add(limit)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise NodeShuttingDown from None
        finally:
            self._open.discard(limit)
            self._left.set()
