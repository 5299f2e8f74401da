"""Owns one task per VM, and what is done once for the node: the sweep for strays and the upkeep of the store."""

from __future__ import annotations

import asyncio
import contextvars
from datetime import timedelta

import structlog

from cellmesh.hypervisor.domain.event import Anomaly, Subject
from cellmesh.hypervisor.domain.vm import VmId
from cellmesh.hypervisor.reconciler.vm import VmReconciler
from cellmesh.hypervisor.reconciler.world import World

_UPKEEP = timedelta(minutes=1)
_SHARE_OF_STRAYS = 0.1
_FEW = 3
_log = structlog.get_logger()


class Reconciler:
    """Keeps every VM of the node as it is wanted, for as long as `run` runs. VMs outlive it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._followed: set[str] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._context = contextvars.Context()

    async def run(self, ready: asyncio.Event) -> None:
        """Keep the VMs until cancelled; `ready` is set once each of them has its keeper."""
        # Keepers must not inherit the deadline or the trace of the call that made their VM.
        self._context = contextvars.copy_context()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            async with self._world.store.reading() as reading:
                vms = await reading.vms()
            for vm in vms:
                self.follow(vm.vm_id)
            await self._sweep({vm.vm_id for vm in vms})
            ready.set()
            while True:
                await asyncio.sleep(_UPKEEP.total_seconds())
                await self._maintain()

    async def _maintain(self) -> None:
        try:
            await self._world.store.maintain()
        except Exception as error:
            # A full disk may have room again in a minute; VMs and readers do not need what was not done.
            _log.error("store.upkeep_failed", exc_info=error)

    def follow(self, vm_id: VmId) -> None:
        """Begin to keep a VM."""
        if self._tasks is not None and vm_id not in self._followed:
            self._followed.add(vm_id)
            self._tasks.create_task(self._keep(vm_id), name=f"keeper of {vm_id}", context=self._context.copy())

    async def _keep(self, vm_id: VmId) -> None:
        try:
            await VmReconciler(self._world, vm_id).run()
        finally:
            self._followed.discard(vm_id)

    async def _sweep(self, known: set[str]) -> None:
        """Log what is here of no VM that is known. Nothing is killed: the store may be what is wrong."""
        strays = await asyncio.to_thread(self._world.vmm.sweep, known)
        if not strays:
            return
        async with self._world.store.transaction() as tx:
            if len(strays) > max(_FEW, _SHARE_OF_STRAYS * len(known)):
                message = (
                    f"{len(strays)} processes or directories belong to no VM of the store; it may be another node's, "
                    "or an old copy. Check CELLMESH_STATE_DIR before anything is removed."
                )
                await tx.log(Subject(), Anomaly(kind="MANY_STRAYS", message=message))
                return
            for stray in strays:
                process = "" if stray.pid is None else f" (process {stray.pid})"
                what = f"{stray.kind} {stray.name}{process} at {stray.path}"
                message = f"{what} belongs to no VM; look at it, then remove it."
                await tx.log(Subject(), Anomaly(kind=f"STRAY_{stray.kind.upper()}", message=message))
                _log.warning("node.stray", kind=stray.kind, name=stray.name, pid=stray.pid, path=str(stray.path))
