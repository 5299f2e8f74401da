"""The sockets by which the edge reaches the containers of one boot of one VM."""

from __future__ import annotations

import asyncio

from cellmesh.hypervisor.domain.container import ContainerState
from cellmesh.hypervisor.reconciler.world import World
from cellmesh.hypervisor.vmm import Handle, ingress_name

# From before its process runs until it is over: one that ends by itself comes back in the same generation.
_ALIVE = frozenset({ContainerState.STARTING, ContainerState.RUNNING, ContainerState.BACKOFF, ContainerState.STOPPING})


class Ingress:
    """One socket for each generation that an agent has. `fresh` says that the bridge has none yet."""

    def __init__(self, world: World, handle: Handle, *, fresh: bool) -> None:
        self._world = world
        self._handle = handle
        self._there: dict[str, int] | None = {} if fresh else None
        self._changing = asyncio.Lock()

    def forget(self) -> None:
        """Note that the bridge is another, which may have none of the sockets."""
        self._there = None

    async def ensure(self) -> None:
        """Make the sockets those of the generations there are now. Raises BridgeFailed, OSError."""
        async with self._changing:
            wanted = self._wanted()
            if wanted == self._there:
                return
            if self._there is None or self._there.keys() - wanted.keys():
                # The edge has to lead elsewhere before nobody is there to answer it.
                await self._world.edge.settled(self._handle.vm_id)
            self._there = None
            await self._world.vmm.ensure_ingress(self._handle, wanted)
            self._there = wanted

    def _wanted(self) -> dict[str, int]:
        epoch = self._handle.epoch
        return {
            ingress_name(container.name, epoch=epoch, generation=container.generation): container.ingress_port
            for container in self._world.store.mirror.containers(self._handle.vm_id)
            if container.epoch == epoch and container.status.state in _ALIVE
        }
