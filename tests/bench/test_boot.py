"""What it takes to boot a VM until it is healthy, and how large its agent is then."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from bench.bare_boot import BareBoot, bare_boots
from bench.conftest import Interleave, Record
from cellmesh.api.common.v1 import health_pb2
from cellmesh.api.guest.v1 import guest_service_pb2, guest_service_pb2_grpc
from cellmesh.api.hypervisor.v1 import vm_pb2, vm_service_pb2
from cellmesh.image import GuestImage
from cellmesh.mesh.channel import guest_channel
from support.node import Node
from support.real_node import PATIENCE, real_node

_ROUNDS = 5
_MOST_RATIO = 2.0
_MOST_AGENT_MIB = 48
_MOST_MODULES = 310
_SIZE = vm_pb2.VmSpec(vcpus=1, memory_bytes=512 << 20, data_disk_bytes=1 << 30)

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]


@dataclass(slots=True, kw_only=True)
class Boots:
    """A node that boots the real guest, and what boots a bare one."""

    it: Node
    bare: BareBoot
    vm: vm_pb2.Vm = field(default_factory=vm_pb2.Vm)
    agents: list[guest_service_pb2.GetInfoResponse] = field(default_factory=list)

    async def boot(self) -> None:
        """Create a VM and follow it until its health is good."""
        created = await self.it.create(
            vcpus=_SIZE.vcpus, memory_bytes=_SIZE.memory_bytes, data_disk_bytes=_SIZE.data_disk_bytes
        )
        self.vm = await self.it.until(created.vm_id, vm_pb2.VM_STATE_RUNNING)
        health = await self.it.vms.CheckVmHealth(vm_service_pb2.CheckVmHealthRequest(vm_id=self.vm.vm_id))
        assert health.status == health_pb2.HEALTH_STATUS_SERVING, health

    async def delete(self) -> None:
        """Note what the agent says of itself, then delete the VM."""
        directory = self.it.run_dir / "vm" / self.vm.vm_id.replace("-", "")[:12]
        async with guest_channel(directory / "in" / f"agent.{self.vm.epoch}", vm_id=self.vm.vm_id) as channel:
            stub: guest_service_pb2_grpc.GuestServiceAsyncStub = guest_service_pb2_grpc.GuestServiceStub(channel)
            self.agents.append(await stub.GetInfo(guest_service_pb2.GetInfoRequest()))
        request = vm_service_pb2.DeleteVmRequest(request_id=str(uuid.uuid4()), vm_id=self.vm.vm_id)
        await self.it.vms.DeleteVm(request, timeout=PATIENCE)
        await self.it.until_gone(self.vm.vm_id)


@pytest.fixture
def boots(runner: asyncio.Runner, guest_image: GuestImage) -> Iterator[Boots]:
    """Give what boots guests of both kinds."""

    async def enter(stack: AsyncExitStack) -> Boots:
        bare = stack.enter_context(bare_boots(guest_image))
        return Boots(it=await stack.enter_async_context(real_node(guest_image)), bare=bare)

    stack = AsyncExitStack()
    try:
        yield runner.run(enter(stack))
    finally:
        runner.run(stack.aclose())


def test_boot(boots: Boots, runner: asyncio.Runner, interleave: Interleave, record: Record, *, emulated: bool) -> None:
    """Prove that the agent and the hypervisor at most double what a bare guest takes, and that the agent is small."""
    samples, floors = interleave(
        lambda: runner.run(boots.boot()),
        lambda: runner.run(boots.bare.seconds(_SIZE)),
        rounds=_ROUNDS,
        reset=lambda: runner.run(boots.delete()),
    )
    note = "CreateVm until CheckVmHealth is SERVING; floor: a bare guest's first bytes, same VMM, kernel and initramfs"
    record(
        "vm_boot_to_healthy",
        samples,
        floors=floors,
        unit="s",
        max_ratio=_MOST_RATIO,
        emulated=emulated,
        note=note,
    )
    sizes = [agent.agent_rss_bytes / (1 << 20) for agent in boots.agents]
    record("agent_rss", sizes, unit="MiB", max_value=_MOST_AGENT_MIB, emulated=emulated)
    modules = [float(agent.agent_module_count) for agent in boots.agents]
    record("agent_modules", modules, unit="modules", max_value=_MOST_MODULES, emulated=emulated)
