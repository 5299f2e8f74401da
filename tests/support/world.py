"""A node whose hypervisor may die at any moment: who calls it starts another and asks again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from cellmesh.api.hypervisor.v1 import vm_service_pb2
from cellmesh.hypervisor.vmm.layout import short
from cellmesh.mesh.errors import DownstreamUnavailable, MeshError
from simulator import Hub, SimulatedProcess
from support.invariants import Broken
from support.zygote import ForkedNode

_DIES_SECONDS = 10.0
T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Life:
    """One VM: its user, and every wish that was answered."""

    user: str
    create: vm_service_pb2.CreateVmRequest
    vm_id: str = ""
    answers: list[tuple[str, Message, Message]] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class World:
    """A node, what plays its VMs, and the loop both are driven by."""

    loop: asyncio.AbstractEventLoop
    it: ForkedNode
    hub: Hub
    image: str
    # What did not hold, first things first: Hypothesis plays a history again, and the second time may be another.
    found: list[Exception] = field(default_factory=list)
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    def run(self, step: Awaitable[T]) -> T:
        """Take a step; what it raises is found."""
        try:
            return self.loop.run_until_complete(step)
        except Exception as error:
            self.found.append(error)
            raise

    def hold(self, faults: Sequence[Broken]) -> None:
        """Raise the first fault, if there is one; all are found."""
        self.found += faults
        if faults:
            raise faults[0]

    @property
    def dead(self) -> bool:
        """Tell whether the hypervisor has died."""
        return self.it.process is None or self.it.process.returncode is not None

    async def restarted(self, *, failpoint: str = "") -> None:
        """Start another hypervisor if the last one is dead, and one more if that meets its failpoint at once."""
        async with self.starting:
            if not self.dead:
                return
            await self.it.hang_up()
            if failpoint:
                with contextlib.suppress(AssertionError):
                    await self.it.start(failpoint=failpoint)
                    return
            await self.it.start()

    async def call(self, make: Callable[[], Awaitable[T]]) -> T:
        """Call the hypervisor, again with another one if it dies meanwhile; MeshError if it refuses."""
        while True:
            async with self.starting:
                called = self.it.process
            try:
                return await make()
            except (MeshError, grpc.aio.UsageError) as error:
                # Another call may have seen it die first, and have hung up and started the next one.
                if self.it.process is called and not await self._dies(error):
                    raise
            await self.restarted()

    async def _dies(self, error: Exception) -> bool:
        """Tell whether the hypervisor is dead, or about to be: its sockets close a moment before it is gone."""
        if self.it.process is not None and isinstance(error, DownstreamUnavailable):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DIES_SECONDS):
                    await self.it.process.wait()
        return self.dead

    def process(self, vm_id: str) -> SimulatedProcess | None:
        """Return the VMM of a VM, if one runs."""
        return self.hub.processes.get(self.it.run_dir / "vm" / short(vm_id))
