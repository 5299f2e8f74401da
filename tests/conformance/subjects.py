"""The three things under test: how the binary of each is come by."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_INSTALL = Path(__file__).parents[2] / "tools" / "emulator" / "install.sh"


@contextmanager
def binary(name: str, directory: Path) -> Iterator[Path]:
    """Give the path of a subject's binary for as long as it is needed."""
    if name == "simulator":
        with _simulator(directory) as path:
            yield path
    elif name == "emulator":
        done = subprocess.run([_INSTALL, directory], check=True, capture_output=True, text=True)
        yield Path(done.stdout.strip())
    else:
        yield Path(os.environ["CELLMESH_VMM"])


@contextmanager
def _simulator(directory: Path) -> Iterator[Path]:
    """Run a hub in a thread of its own, so that the suite is the same blocking code for all three."""
    from conformance.simulated_guest import ConformanceGuest
    from simulator import Hub

    ready = threading.Event()
    hub = Hub(directory, guest=ConformanceGuest)
    loop = asyncio.new_event_loop()
    done = asyncio.Event()

    async def serve() -> None:
        async with hub:
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="hub")
    thread.start()
    ready.wait()
    try:
        yield hub.binary
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()
