"""Keeps a bridge beside a VMM: one that dies takes the connections it carried with it, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from cellmesh.hypervisor.reconciler.world import World
from cellmesh.hypervisor.vmm import Handle, VmmError

_PROVEN = 10.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
_log = structlog.get_logger()


async def keep_bridge(world: World, handle: Handle, renewed: Callable[[Handle], None]) -> None:
    """Replace a VM's bridge whenever it ends, until cancelled; `renewed` is told of each new one."""
    pause, begun = 0.0, time.monotonic()
    while True:
        await world.vmm.wait_bridge(handle)
        _log.warning("bridge.ended", vm_id=handle.vm_id, epoch=handle.epoch, pid=handle.bridge_pid)
        pause = 0.0 if time.monotonic() - begun > _PROVEN else min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
        await asyncio.sleep(pause)
        try:
            handle = await world.vmm.ensure_bridge(handle)
        except (VmmError, OSError) as error:
            _log.error("bridge.not_replaced", vm_id=handle.vm_id, epoch=handle.epoch, exc_info=error)
            continue
        begun = time.monotonic()
        renewed(handle)
