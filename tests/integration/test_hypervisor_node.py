"""A real hypervisor over simulated VMs: it ends and comes back, tells what happened, and knows its room."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from datetime import timedelta
from pathlib import Path

import pytest

from cellmesh.api.hypervisor.v1 import (
    event_service_pb2,
    node_service_pb2,
    vm_pb2,
    vm_service_pb2,
)
from cellmesh.mesh.errors import MeshError
from simulator.hub import Hub
from support.node import SECONDS, Node, node, wish

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_vms_outlive_the_hypervisor(it: Node, number: signal.Signals, image: str) -> None:
    """A stopped or killed hypervisor leaves its VMs running; the next one has the same process, epoch and container."""
    vm = await it.running()
    before = await it.start_container(vm.vm_id, image)
    status = await it.stop(number)
    assert status == (0 if number is signal.SIGTERM else -number)
    os.kill(vm.vmm_pid, 0)
    await it.start()
    after = await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING)
    assert (after.vmm_pid, after.epoch, after.restart_count) == (vm.vmm_pid, vm.epoch, 0)
    container = await it.container(vm.vm_id)
    assert (container.generation, container.status.state) == (before.generation, before.status.state)
    await it.stop_vm(vm.vm_id)


async def test_a_vmm_that_died_while_nobody_looked_is_started_again(it: Node) -> None:
    """A VM whose VMM is gone when the hypervisor comes back runs again in the next epoch."""
    vm = await it.running()
    await it.stop()
    os.kill(vm.vmm_pid, signal.SIGKILL)
    await it.start()
    again = await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)
    assert again.restart_count == 1


async def test_a_second_hypervisor_is_refused_and_the_first_unharmed(it: Node) -> None:
    """Another hypervisor on the same state ends with a sentence and status 78, the first goes on serving."""
    vm = await it.running()
    log = it.log
    it.log = log.with_name("second.log")
    second = await it.spawn()
    async with asyncio.timeout(SECONDS):
        assert await second.wait() == 78
    assert "Another hypervisor" in it.log.read_text()
    it.log = log
    assert (await it.get(vm.vm_id)).state == vm_pb2.VM_STATE_RUNNING


async def test_a_watch_goes_on_where_it_broke(it: Node) -> None:
    """A watch resumed with a token, even by another hypervisor, tells every revision since, once and in order."""
    vm = await it.running()
    token = b""
    watch = it.vms.WatchVms(vm_service_pb2.WatchVmsRequest(vm_id=vm.vm_id))
    async for answer in watch:
        token = answer.resume_token
        if answer.bookmark.caught_up:
            break
    watch.cancel()
    seen = (await it.get(vm.vm_id)).revision
    await it.stop_vm(vm.vm_id)
    await it.stop()
    await it.start()
    revisions = []
    watch = it.vms.WatchVms(vm_service_pb2.WatchVmsRequest(vm_id=vm.vm_id, resume_token=token))
    async for answer in watch:
        if answer.HasField("vm"):
            revisions.append(answer.vm.revision)
        elif answer.bookmark.caught_up:
            break
    watch.cancel()
    last = (await it.get(vm.vm_id)).revision
    assert last > seen
    assert revisions == list(range(seen + 1, last + 1))


async def test_events_are_told_to_everybody_alike(it: Node) -> None:
    """What a watch from the beginning tells is what the list holds, gaps and all."""
    vm = await it.running()
    await it.stop_vm(vm.vm_id)
    listed = [event.sequence for event in await it.all_events()]
    watched: list[int] = []
    watch = it.events.WatchEvents(event_service_pb2.WatchEventsRequest(from_beginning=True))
    async for answer in watch:
        if answer.HasField("event"):
            watched.append(answer.event.sequence)
        if len(watched) == len(listed):
            break
    watch.cancel()
    assert watched == listed == sorted(set(listed))


async def test_a_vm_that_cannot_be_told_is_left_alone(it: Node, hub: Hub) -> None:
    """With a handle nobody can read a VM is QUARANTINED and runs on; only a delete with force ends it."""
    vm = await it.running()
    await it.stop()
    (it.state_dir / "vm" / vm.vm_id / "handle.json").write_text("{")
    await it.start()
    doubtful = await it.until(vm.vm_id, vm_pb2.VM_STATE_QUARANTINED)
    assert doubtful.reason == "ADOPTION_DOUBTFUL"
    os.kill(vm.vmm_pid, 0)
    for call in (
        it.vms.StopVm(vm_service_pb2.StopVmRequest(**wish(vm.vm_id))),
        it.vms.DeleteVm(vm_service_pb2.DeleteVmRequest(**wish(vm.vm_id))),
    ):
        with pytest.raises(MeshError) as refused:
            await call
        assert refused.value.reason == "VM_QUARANTINED"
    await it.vms.DeleteVm(vm_service_pb2.DeleteVmRequest(force=True, **wish(vm.vm_id)))
    await it.until_gone(vm.vm_id)
    async with asyncio.timeout(SECONDS):
        while hub.processes:  # noqa: ASYNC110  # the hub hears of a death when the kernel closes the dead one's sockets
            await asyncio.sleep(0.01)


async def test_watchers_are_told_that_the_hypervisor_stops(it: Node) -> None:
    """A stop ends streams with NODE_SHUTTING_DOWN, at once and not after the grace of calls that run."""
    watch = it.vms.WatchVms(vm_service_pb2.WatchVmsRequest())
    assert (await anext(watch)).bookmark.caught_up
    assert it.process is not None
    it.process.send_signal(signal.SIGTERM)
    with pytest.raises(MeshError) as ended:
        await anext(watch)
    assert ended.value.reason == "NODE_SHUTTING_DOWN"
    assert await it.ended() == 0


async def test_a_draining_node_takes_nothing_new(it: Node) -> None:
    """While it drains a node refuses VMs and starts, keeps what runs, and takes them again afterwards."""
    vm = await it.running()
    drain = node_service_pb2.DrainNodeRequest(request_id=str(uuid.uuid4()), draining=True)
    assert (await it.node.DrainNode(drain)).node.draining
    with pytest.raises(MeshError) as refused:
        await it.create()
    assert refused.value.reason == "NODE_DRAINING"
    assert (await it.get(vm.vm_id)).state == vm_pb2.VM_STATE_RUNNING
    again = node_service_pb2.DrainNodeRequest(request_id=str(uuid.uuid4()), draining=False)
    await it.node.DrainNode(again)
    await it.running()


async def test_a_full_node_says_when_to_come_back(hub: Hub, place: Path) -> None:
    """A node without room refuses with RetryInfo, by count and by memory."""
    async with node(place, hub.binary, max_vms=2, memory_capacity_bytes=768 << 20) as it:
        await it.running()
        with pytest.raises(MeshError) as no_memory:
            await it.create()
        assert (no_memory.value.reason, no_memory.value.retry_after) == ("NODE_FULL", timedelta(seconds=30))
        await it.running(memory_bytes=128 << 20)
        with pytest.raises(MeshError) as no_place:
            await it.create(memory_bytes=128 << 20)
        assert "2 VMs" in str(no_place.value)


async def test_what_nobody_knows_is_told_and_left_alone(it: Node) -> None:
    """A VMM of no VM of the store is an anomaly in the log, and goes on running."""
    vm = await it.running()
    await it.stop()
    (it.state_dir / "hypervisor.db").rename(it.state_dir / "elsewhere.db")
    for suffix in ("-wal", "-shm"):
        (it.state_dir / f"hypervisor.db{suffix}").unlink(missing_ok=True)
    await it.start()
    kinds = [event.anomaly.kind for event in await it.all_events() if event.HasField("anomaly")]
    assert any(kind.startswith(("STRAY_", "MANY_STRAYS")) for kind in kinds)
    os.kill(vm.vmm_pid, 0)
