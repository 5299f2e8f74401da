"""Stopping a VM: its agent is asked first, then the VMM, ever less kindly."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable
from datetime import timedelta

import structlog

from cellmesh.hypervisor.domain.container import Container
from cellmesh.hypervisor.reconciler.world import World
from cellmesh.hypervisor.vmm import Handle, process
from cellmesh.hypervisor.vmm.sweep import vmm_processes
from cellmesh.mesh.errors import MeshError

_LONGEST_GRACE = timedelta(seconds=120)
_KILL_SECONDS = 30.0
_log = structlog.get_logger()


def agent_grace(containers: Iterable[Container]) -> timedelta:
    """Return the longest grace of the containers that an agent has."""
    graces = (container.spec.stop_grace for container in containers if container.epoch > 0)
    return min(max(graces, default=timedelta()), _LONGEST_GRACE)


async def stop(world: World, handle: Handle, *, grace: timedelta | None) -> None:
    """Stop a VMM and wait until it is gone; `grace` None spares its agent the question."""
    if grace is not None:
        try:
            await world.guests.shutdown(handle.vm_id, handle.epoch, grace=grace)
        except MeshError as error:
            # The ladder below needs no agent; what it costs is the containers' grace.
            _log.warning("vm.agent_not_asked", vm_id=handle.vm_id, error=error.message)
        world.failpoint("stop.agent_asked")
    await world.vmm.stop(handle)


async def kill_whatever_runs(world: World, vm_id: str) -> None:
    """Kill every process that names the VM's run directory as its own; only for an owner who wished it by force."""
    for pid in await asyncio.to_thread(vmm_processes, world.vmm.directory(vm_id)):
        ticks = process.start_ticks(pid)
        if ticks is not None:
            process.send_signal(pid, ticks, signal.SIGKILL)
            await process.wait(pid, ticks, seconds=_KILL_SECONDS)
