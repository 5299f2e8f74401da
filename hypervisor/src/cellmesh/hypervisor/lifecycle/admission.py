"""Whether the node has room: how many VMs it takes, and how much memory it promises them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from cellmesh.hypervisor.domain.errors import NodeDraining, NodeFull
from cellmesh.hypervisor.domain.vm import Vm
from cellmesh.hypervisor.store import Reading

_RETRY_AFTER = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The room of the node. Memory is promised to VMs that run; a start that finds none waits for it."""

    max_vms: int
    memory_capacity_bytes: int

    async def admit(self, reading: Reading, memory_bytes: int) -> None:
        """Let a new VM in; NodeDraining or NodeFull if it may not come."""
        await self.allow_start(reading)
        if await reading.vm_count() >= self.max_vms:
            raise NodeFull(
                f"The node has {self.max_vms} VMs, the most it takes; delete one, or use another node.",
                retry_after=_RETRY_AFTER,
            )
        free = self.memory_capacity_bytes - await reading.memory_committed()
        if memory_bytes > free:
            raise NodeFull(
                f"The VM wants {memory_bytes >> 20} MiB of memory, the node has {max(free, 0) >> 20} MiB to promise; "
                "stop a VM, ask for less, or use another node.",
                retry_after=_RETRY_AFTER,
            )

    async def allow_start(self, reading: Reading) -> None:
        """Let a start through; NodeDraining if the node takes none."""
        if (await reading.node()).draining:
            raise NodeDraining

    async def fits(self, reading: Reading, vm: Vm) -> bool:
        """Tell whether there is memory for a VM that is to start."""
        return vm.spec.memory_bytes <= self.memory_capacity_bytes - await reading.memory_committed()
