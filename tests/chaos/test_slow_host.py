"""Real guests on a host that is ten times slower: none of them is ended for it.

`SLOW_BOOTS=30 pytest tests/chaos/test_slow_host.py` boots as many as one likes; each takes about a minute.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta

import pytest

from cellmesh.api.hypervisor.v1 import vm_pb2, vm_service_pb2
from cellmesh.image import GuestImage
from support.local_runtime import until
from support.node import Node, wish
from support.real_node import real_node
from support.slow_host import slowed

BOOTS = int(os.environ.get("SLOW_BOOTS", "2"))
BOOT_LIMIT = timedelta(seconds=15)
SECONDS = 600.0
pytestmark = [pytest.mark.guest, pytest.mark.asyncio, pytest.mark.timeout(BOOTS * SECONDS)]


async def test_no_guest_is_ended_for_a_slow_host(guest_image: GuestImage) -> None:
    """Each boot takes longer than its limit by the clock, and each guest stays in its first epoch while others boot."""
    with slowed() as processes:
        async with real_node(guest_image, boot_timeout=BOOT_LIMIT, heartbeat_interval=1) as it:
            assert it.process is not None
            it.patience = SECONDS
            processes.write_text(str(it.process.pid))
            took = [await boot(it) for _ in range(BOOTS)]
            ends = await ended_epochs(it)
        await until(lambda: processes.read_text() == "")
    assert ends == []
    # The control: by the clock, every one of them would have been given up.
    assert min(took) > BOOT_LIMIT.total_seconds(), took
    print(f"{BOOTS} boots of {min(took):.0f} to {max(took):.0f} s, none ended")


async def boot(it: Node) -> float:
    """Boot a VM, see that those before it still run, and delete the oldest of three; return the seconds it took."""
    begun = time.monotonic()
    vm = await it.create(memory_bytes=512 << 20)
    running = await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING)
    took = time.monotonic() - begun
    assert running.epoch == 1
    vms = (await it.vms.ListVms(vm_service_pb2.ListVmsRequest())).vms
    assert {each.state for each in vms} == {vm_pb2.VM_STATE_RUNNING}
    if len(vms) == 3:
        await it.vms.DeleteVm(vm_service_pb2.DeleteVmRequest(**wish(vms[0].vm_id)))
        await it.until_gone(vms[0].vm_id)
    return took


async def ended_epochs(it: Node) -> list[str]:
    """Return the reason of each epoch that ended by itself."""
    changes = [event.vm_state_changed for event in await it.all_events()]
    return [change.reason for change in changes if change.to in {vm_pb2.VM_STATE_BACKOFF, vm_pb2.VM_STATE_FAILED}]
