"""A VmService of which a test decides each answer."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from cellmesh.api.hypervisor.v1 import vm_pb2, vm_service_pb2, vm_service_pb2_grpc
from cellmesh.mesh.server import Register

USER = "00000000-0000-4000-8000-000000000001"
GET = vm_service_pb2.GetVmRequest(user_id=USER)


async def _answer() -> None:
    return


@dataclass(slots=True)
class Vms(vm_service_pb2_grpc.VmServiceServicer):
    """Awaits `behave`, then answers; counts what it was asked, and notes when a stream or call of it ended."""

    behave: Callable[[], Awaitable[None]] = _answer
    answer: vm_service_pb2.GetVmResponse = field(default_factory=vm_service_pb2.GetVmResponse)
    asked: int = 0
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    ended_where_it_began: bool = False

    async def GetVm(self, request: vm_service_pb2.GetVmRequest, context: Any) -> vm_service_pb2.GetVmResponse:
        """Answer once."""
        self.asked += 1
        self.entered.set()
        try:
            await self.behave()
        finally:
            self.ended.set()
        return self.answer

    async def WatchVms(
        self, request: vm_service_pb2.WatchVmsRequest, context: Any
    ) -> AsyncIterator[vm_service_pb2.WatchVmsResponse]:
        """Tell without end, as fast as it is read."""
        self.asked += 1
        self.entered.set()
        began = asyncio.current_task()
        try:
            await self.behave()
            revision = 0
            while True:
                revision += 1
                yield vm_service_pb2.WatchVmsResponse(vm=vm_pb2.Vm(revision=revision))
        finally:
            self.ended_where_it_began = asyncio.current_task() is began
            self.ended.set()

    @property
    def register(self) -> Register:
        """What adds it to a server."""
        return functools.partial(vm_service_pb2_grpc.add_VmServiceServicer_to_server, self)
