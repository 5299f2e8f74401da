"""Five hundred VMs at once on one hypervisor: all run, it stays small, and afterwards nothing is left."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection
from pathlib import Path

import psutil
import pytest

from cellmesh.api.hypervisor.v1 import vm_pb2, vm_service_pb2
from cellmesh.hypervisor.vmm import sweep
from cellmesh.hypervisor.vmm.layout import Layout
from simulator import Hub
from support.hollow_images import hollow_guest
from support.node import Node, node, short_directory

_VMS = 500
_MOST_BYTES = 165 << 20
"""About 9 MiB of it is cryptography, which signs the audit log's heads."""
_SECONDS = 240.0
_PATIENCE = 30.0
"""What the contract allows a caller to wait; the last of 500 waits for the transactions of all others."""

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(600)
@pytest.mark.asyncio
async def test_five_hundred_vms_at_once() -> None:
    """Prove that a burst of users gets its VMs, within the memory a node may take, and that all of it can be undone."""
    with short_directory() as directory:
        hollow_guest(directory / "state" / "images")
        async with Hub(directory / "hub") as hub, node(directory, hub.binary) as it:
            assert it.process is not None
            created = await asyncio.gather(*(_create(it) for _ in range(_VMS)))
            vms = [vm.vm_id for vm in created]
            running, now = await _all(it, vms, lambda vm: vm.state == vm_pb2.VM_STATE_RUNNING)
            assert len({vm.vmm_pid for vm in running.values()}) == _VMS
            assert {vm.epoch for vm in running.values()} == {1}
            assert len(hub.processes) == _VMS
            resident = psutil.Process(it.process.pid).memory_info().rss
            assert resident <= _MOST_BYTES, f"{resident >> 20} MiB"
            await asyncio.gather(*(_delete(it, vm_id) for vm_id in vms))
            await _all(it, vms, lambda vm: vm.state == vm_pb2.VM_STATE_DELETED, since=now)
            assert not (await it.vms.ListVms(vm_service_pb2.ListVmsRequest())).vms
            assert _left(it.run_dir, it.state_dir) == []
            assert hub.processes == {}


async def _create(it: Node) -> vm_pb2.Vm:
    request = vm_service_pb2.CreateVmRequest(request_id=str(uuid.uuid4()), user_id=str(uuid.uuid4()))
    return (await it.vms.CreateVm(request, timeout=_PATIENCE)).vm


async def _all(
    it: Node, vms: Collection[str], wanted: Callable[[vm_pb2.Vm], bool], *, since: bytes = b""
) -> tuple[dict[str, vm_pb2.Vm], bytes]:
    """Follow all VMs until each was as wanted; return them as they were then, and what resumes the watch there.

    Without `since` a VM that is gone already would never be told.
    """
    found: dict[str, vm_pb2.Vm] = {}
    watch = it.vms.WatchVms(vm_service_pb2.WatchVmsRequest(resume_token=since))
    try:
        async with asyncio.timeout(_SECONDS):
            async for answer in watch:
                if answer.HasField("vm") and answer.vm.vm_id in vms and wanted(answer.vm):
                    found[answer.vm.vm_id] = answer.vm
                if len(found) == len(vms) and answer.resume_token:
                    return found, answer.resume_token
    except TimeoutError:
        raise AssertionError(f"{len(found)} of {len(vms)} came so far; log: {it.log.read_text()[-4000:]}") from None
    finally:
        watch.cancel()
    raise AssertionError("the watch ended")


async def _delete(it: Node, vm_id: str) -> None:
    request = vm_service_pb2.DeleteVmRequest(request_id=str(uuid.uuid4()), vm_id=vm_id)
    await it.vms.DeleteVm(request, timeout=_PATIENCE)


def _left(run_dir: Path, state_dir: Path) -> list[str]:
    """Return every process, directory and uid of a VM that is still there."""
    strays = sweep.strays(Layout(run_dir=run_dir, state_dir=state_dir), ())
    return [str(stray.path) for stray in strays] + [str(path) for path in (state_dir / "uids").glob("*")]
