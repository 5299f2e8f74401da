"""Looks on while a guest misbehaves: is a neighbour still well, and does the hypervisor stay small.

A neighbour is not called ill for a host that gives no processor to the hypervisor, or to us who play the guests.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psutil

from cellmesh.api.common.v1 import health_pb2
from cellmesh.api.hypervisor.v1 import vm_service_pb2, vm_service_pb2_grpc
from cellmesh.hypervisor.vmm.liveness import Watch
from cellmesh.mesh.errors import MeshError

HEALTH_SECONDS = 5.0
"""The contract's own deadline of CheckVmHealth."""
MEMORY_BYTES = 24 << 20
"""What one attack may make the hypervisor grow by; the worst was seen to take 10 MiB."""
_PAUSE = 0.05


@dataclass(slots=True, kw_only=True)
class Witness:
    """What was seen."""

    memory_before: int
    memory_most: int = 0
    checks: int = 0
    """Those that the host did not hold up."""
    ill: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Say what should not have been seen."""
        found = list(self.ill)
        if not self.checks:
            found.append("the neighbour's health was never asked")
        if (grown := self.memory_most - self.memory_before) > MEMORY_BYTES:
            found.append(f"the process grew by {grown >> 20} MiB")
        return found


@asynccontextmanager
async def watching(pid: int, vms: vm_service_pb2_grpc.VmServiceAsyncStub, neighbour: str) -> AsyncIterator[Witness]:
    """Ask for the neighbour's health and the process's memory again and again inside; once at the least."""
    process = psutil.Process(pid)
    witness = Witness(memory_before=process.memory_info().rss)
    asked = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        looking = group.create_task(_look(process, vms, neighbour, witness, asked))
        try:
            yield witness
            asked.clear()
            await asked.wait()
        finally:
            looking.cancel()


async def _look(
    process: psutil.Process,
    vms: vm_service_pb2_grpc.VmServiceAsyncStub,
    neighbour: str,
    witness: Witness,
    asked: asyncio.Event,
) -> None:
    request = vm_service_pb2.CheckVmHealthRequest(vm_id=neighbour)
    while True:
        watches, ill = [Watch.of(pid) for pid in (process.pid, os.getpid())], ""
        try:
            health = await vms.CheckVmHealth(request, timeout=HEALTH_SECONDS)
            if health.status != health_pb2.HEALTH_STATUS_SERVING:
                ill = f"the neighbour was not well: {health}"
        except MeshError as error:
            ill = f"the neighbour's health was not told: {error}"
        witness.memory_most = max(witness.memory_most, process.memory_info().rss)
        if not ill or not any(watch.window().is_overloaded for watch in watches):
            witness.checks += 1
            witness.ill += [ill] if ill else []
            asked.set()
        await asyncio.sleep(_PAUSE)
