"""A hypervisor on simulated VMs, whose hub has a thread of its own: what is measured here are plain functions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from simulator import Hub
from support.edge import Edge, edge_of, free_port, listening
from support.hollow_images import hollow_container, hollow_guest
from support.node import Node, node, short_directory


@asynccontextmanager
async def simulated_node() -> AsyncIterator[Node]:
    """Run a hypervisor that can boot simulated VMs."""
    with short_directory() as directory:
        hollow_guest(directory / "state" / "images")
        with _hub(directory / "hub") as binary:
            async with node(directory, binary) as it:
                yield it


@asynccontextmanager
async def simulated_edge() -> AsyncIterator[Edge]:
    """Run a hypervisor that can boot simulated VMs, with its edge."""
    with short_directory() as directory:
        images, port = directory / "state" / "images", free_port()
        hollow_guest(images)
        image = hollow_container(images)
        with _hub(directory / "hub") as binary:
            async with node(directory, binary, **listening(port)) as it, edge_of(it, port) as edge:
                edge.image = image
                yield edge


@contextmanager
def _hub(directory: Path) -> Iterator[Path]:
    ready, loop, done = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    hub = Hub(directory)

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
