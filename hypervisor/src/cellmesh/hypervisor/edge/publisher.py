"""Keeps what the edge is told equal to the store: for each route the socket of its container, or the activator's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta
from pathlib import Path

from cellmesh.hypervisor.domain.errors import EdgeUnreachable, RouteRefused
from cellmesh.hypervisor.domain.route import CurrentRoute, RouteState, cluster_of
from cellmesh.hypervisor.edge import discovery
from cellmesh.hypervisor.edge.discovery import Discovery
from cellmesh.hypervisor.edge.endpoint import Endpoint
from cellmesh.hypervisor.store import Store
from cellmesh.hypervisor.vmm import ingress_name

_SETTLES = 3.0
"""For all routes of a VM: what an edge on a busy host needs, and what one that hangs may cost a stop."""


class Publisher:
    """Publishes routes while `run` runs; `publish_all` comes first, before any Envoy can ask.

    `socket` says where a VM's ingress socket lies, `cut` ends the connections a generation of a container has open.
    """

    def __init__(
        self,
        *,
        store: Store,
        discovery: Discovery,
        socket: Callable[[str, str], Path],
        activator: Path,
        cut: Callable[[str, str, int], Awaitable[None]],
    ) -> None:
        self._mirror = store.mirror
        self._changes = store.changes
        self._discovery = discovery
        self._socket = socket
        self._waiting = Endpoint(path=activator)
        self._cut = cut
        # Names of clusters by VM, and the VM each is of: a user's next VM takes the names over from the one before.
        self._names: dict[str, frozenset[str]] = {}
        self._owners: dict[str, str] = {}

    def publish_all(self) -> None:
        """Publish every route in one piece: an Envoy that has served them before shall miss none of them."""
        self._publish([vm.vm_id for vm in self._mirror.vms()])

    async def run(self) -> None:
        """Publish what is committed, until cancelled."""
        with self._changes.collected() as changed:
            # Nothing that was committed between the first word and this moment may be left out.
            self._publish({*self._names, *(vm.vm_id for vm in self._mirror.vms())})
            while True:
                self._publish(await changed.take())

    async def served(self, vm_id: str, prefix: str, *, within: timedelta) -> None:
        """Return once a route is served as it is committed. Raises RouteRefused, EdgeUnreachable."""
        version = self._publish([vm_id])
        vm = self._mirror.vm(vm_id)
        if vm is None:
            return
        try:
            await self._discovery.served(cluster_of(vm.user_id, prefix), version, timeout=within.total_seconds())
        except discovery.EdgeRefused as error:
            raise RouteRefused(str(error)) from error
        except discovery.EdgeUnreachable as error:
            raise EdgeUnreachable(f"{error} What was stored takes effect once the edge serves again.") from error

    async def settled(self, vm_id: str) -> None:
        """Return once the edge leads a VM's routes as they are committed, or cannot say so within three seconds."""
        version = self._publish([vm_id])
        try:
            async with asyncio.timeout(_SETTLES):
                for name in self._names.get(vm_id, ()):
                    await self._discovery.served(name, version, timeout=_SETTLES)
        except (discovery.EdgeRefused, discovery.EdgeUnreachable, TimeoutError):
            return  # whoever stops something does not wait for an edge that is not there

    async def drain(self, vm_id: str, container: str, generation: int) -> None:
        """Close the connections that are open to one generation of a container."""
        await self._cut(vm_id, container, generation)

    def _publish(self, vm_ids: Collection[str]) -> int:
        """Tell the edge how these VMs are now and return the version from which on this is so."""
        changes: dict[str, Endpoint | None] = {}
        for vm_id in vm_ids:
            endpoints = self._endpoints(vm_id)
            for name in self._names.get(vm_id, frozenset()) - endpoints.keys():
                if self._owners.get(name) == vm_id:
                    del self._owners[name]
                    changes[name] = None
            for name in endpoints:
                self._owners[name] = vm_id
            changes.update(endpoints)
            if endpoints:
                self._names[vm_id] = frozenset(endpoints)
            else:
                self._names.pop(vm_id, None)
        return self._discovery.put(changes)

    def _endpoints(self, vm_id: str) -> dict[str, Endpoint]:
        routes = self._mirror.routes(vm_id)
        return {cluster_of(route.user_id, route.route.prefix): self._endpoint(route) for route in routes}

    def _endpoint(self, current: CurrentRoute) -> Endpoint:
        status, container = current.status, current.route.target.container
        if status.state is not RouteState.SERVING:
            return self._waiting
        vm_id = current.route.vm_id
        name = ingress_name(container, epoch=status.epoch, generation=status.generation)
        return Endpoint(
            path=self._socket(vm_id, name),
            vm_id=vm_id,
            container=container,
            epoch=status.epoch,
            generation=status.generation,
        )
