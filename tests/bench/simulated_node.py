"""A hypervisor on simulated VMs, whose hub has a thread of its own: what is measured here are plain functions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from cellmesh.hypervisor.domain.route import default_routes
from cellmesh.hypervisor.domain.vm import DesiredState, VmState
from cellmesh.hypervisor.store import Store
from simulator import Hub
from support.edge import Edge, edge_of, listening
from support.hollow_images import hollow_container, hollow_guest
from support.node import Node, node, short_directory
from support.ports import held_port
from support.vms import NOW, make_vm


@asynccontextmanager
async def simulated_node() -> AsyncIterator[Node]:
    """Run a hypervisor that can boot simulated VMs."""
    with short_directory() as directory:
        hollow_guest(directory / "state" / "images")
        with _hub(directory / "hub") as binary:
            async with node(directory, binary) as it:
                yield it


@asynccontextmanager
async def simulated_edge(*, stopped_cells: int = 0) -> AsyncIterator[Edge]:
    """Run a hypervisor that can boot simulated VMs, with its edge; it knows so many cells already, and none runs."""
    with short_directory() as directory, held_port() as port:
        images = directory / "state" / "images"
        hollow_guest(images)
        image = hollow_container(images)
        await _know(directory / "state" / "hypervisor.db", stopped_cells)
        with _hub(directory / "hub") as binary:
            async with node(directory, binary, **listening(port)) as it, edge_of(it, port) as edge:
                edge.image = image
                yield edge


async def _know(database: Path, cells: int) -> None:
    async with Store.opened(database) as store, store.transaction() as tx:
        for _ in range(cells):
            vm = make_vm(state=VmState.STOPPED, desired=DesiredState.STOPPED)
            await tx.add_vm(vm)
            await tx.add_routes(default_routes(vm.vm_id, NOW))


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
