"""The orderly end of the VM."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable

from cellmesh.guest import kernel
from cellmesh.guest.boot import DATA, say


class Shutdown:
    """Stops the containers and flushes the disks, once; whoever waits for `finished` then powers off."""

    def __init__(self, stop_containers: Callable[[float], Awaitable[None]]) -> None:
        self._stop_containers = stop_containers
        self._lock = asyncio.Lock()
        self.finished = asyncio.Event()

    async def finish(self, grace: float) -> None:
        """Stop all within `grace` seconds and flush; a second call joins the first."""
        async with self._lock:
            if self.finished.is_set():
                return
            say(f"shutting down, grace {grace:.0f} s")
            await self._stop_containers(grace)
            await asyncio.to_thread(_flush)
            self.finished.set()


def _flush() -> None:
    os.sync()
    with contextlib.suppress(OSError):
        kernel.unmount(DATA, lazy=True)
    os.sync()
