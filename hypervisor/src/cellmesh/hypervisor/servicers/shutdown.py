"""The end of calls that would otherwise outlast the hypervisor: told, not cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cellmesh.hypervisor.domain.errors import NodeShuttingDown


class Shutdown:
    """Ends every wait and stream that is entered, once it begins, with NodeShuttingDown."""

    def __init__(self) -> None:
        self._begun = False
        self._open: set[asyncio.Timeout] = set()

    def begin(self) -> None:
        """End what is entered now and whatever is entered later."""
        self._begun = True
        now = asyncio.get_running_loop().time()
        for limit in self._open:
            limit.reschedule(now)

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
