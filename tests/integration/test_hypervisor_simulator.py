"""A real hypervisor over simulated VMs: what callers wish comes true, whatever dies in between."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from cellmesh.api.common.v1 import container_pb2 as common_container_pb2
from cellmesh.api.common.v1 import exec_pb2, health_pb2
from cellmesh.api.guest.v1 import agent_service_pb2_grpc
from cellmesh.api.hypervisor.v1 import (
    container_service_pb2,
    event_service_pb2,
    node_service_pb2,
    vm_pb2,
    vm_service_pb2,
)
from cellmesh.mesh.errors import MeshError
from simulator.faults import Fault, FaultKind
from simulator.guest import SimulatedGuest
from simulator.hub import Hub
from support.hollow_images import hollow_container, hollow_guest
from support.node import SECONDS, Node, node, short_directory

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[Hub]:
    """Give a hub of simulated VMs, in a directory that also holds hollow images for a node."""
    with short_directory() as directory:
        hollow_guest(directory / "state" / "images")
        async with Hub(directory / "hub") as it:
            yield it


@pytest.fixture
def place(hub: Hub) -> Path:
    """Give the directory for the node's state."""
    return hub.directory.parent


@pytest_asyncio.fixture
async def it(hub: Hub, place: Path) -> AsyncIterator[Node]:
    """Give a node whose hypervisor serves."""
    async with node(place, hub.binary) as running:
        yield running


@pytest.fixture
def image(place: Path) -> str:
    """Give a container image."""
    return hollow_container(place / "state" / "images")


def wish(vm_id: str) -> dict[str, str]:
    """Return the fields of a fresh wish about a VM."""
    return {"request_id": str(uuid.uuid4()), "vm_id": vm_id}


async def stop(it: Node, vm_id: str) -> vm_pb2.Vm:
    """Stop a VM and return it once it is STOPPED."""
    await it.vms.StopVm(vm_service_pb2.StopVmRequest(**wish(vm_id)))
    return await it.until(vm_id, vm_pb2.VM_STATE_STOPPED)


async def followed(it: Node, vm_id: str, call: Awaitable[object]) -> None:
    """Make a call, then follow a VM for as long as the hypervisor lives; raises the MeshError its death is to us."""
    await call
    async for _ in it.vms.WatchVms(vm_service_pb2.WatchVmsRequest(vm_id=vm_id)):
        continue


def states(events: list) -> list[str]:  # type: ignore[type-arg]  # events of the contract
    """Return the states a VM's events say it went to."""
    return [vm_pb2.VmState.Name(e.vm_state_changed.to)[9:] for e in events if e.HasField("vm_state_changed")]


async def test_a_vm_lives_and_dies_as_wished(it: Node) -> None:
    """Create, stop, start, recycle and delete each end where they should, in one epoch a start, told in order."""
    vm = await it.running()
    assert (vm.epoch, vm.desired_state) == (1, vm_pb2.DESIRED_STATE_RUNNING)
    assert vm.vmm_pid > 0
    stopped = await stop(it, vm.vm_id)
    assert (stopped.vmm_pid, stopped.epoch) == (0, 1)
    await it.vms.StartVm(vm_service_pb2.StartVmRequest(**wish(vm.vm_id)))
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)
    await it.vms.RecycleVm(vm_service_pb2.RecycleVmRequest(**wish(vm.vm_id)))
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=3)
    await it.vms.DeleteVm(vm_service_pb2.DeleteVmRequest(**wish(vm.vm_id)))
    await it.until_gone(vm.vm_id)
    way = "PENDING STARTING RUNNING STOPPING STOPPED PENDING STARTING RUNNING STOPPING PENDING STARTING RUNNING"
    assert states(await it.all_events(vm.vm_id)) == [*way.split(), "DELETING", "DELETED"]
    assert not (it.state_dir / "vm" / vm.vm_id).exists()
    assert list((it.run_dir / "vm").iterdir()) == []


async def test_a_recycle_discards_layers_and_a_start_does_not(hub: Hub, it: Node) -> None:
    """Only the epoch a recycle was wished for is told to throw the writable layers away."""
    told: asyncio.Queue[tuple[int, bool]] = asyncio.Queue()

    class Listening(SimulatedGuest):
        async def say_hello(self, stub: agent_service_pb2_grpc.AgentServiceAsyncStub) -> None:
            await super().say_hello(stub)
            answer = await stub.Hello(self.hello_request())
            told.put_nowait((answer.epoch, answer.discard_layers))

    hub.make_guest = Listening
    vm = await it.running()
    await it.vms.RecycleVm(vm_service_pb2.RecycleVmRequest(**wish(vm.vm_id)))
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)
    await stop(it, vm.vm_id)
    await it.vms.StartVm(vm_service_pb2.StartVmRequest(**wish(vm.vm_id)))
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=3)
    async with asyncio.timeout(SECONDS):
        assert [await told.get() for _ in range(3)] == [(1, False), (2, True), (3, False)]


async def test_a_repeated_request_gets_its_first_answer(it: Node) -> None:
    """The same request_id creates one VM, another request under it is refused, and a second VM of a user too."""
    request = vm_service_pb2.CreateVmRequest(request_id=str(uuid.uuid4()), user_id=str(uuid.uuid4()))
    answers = await asyncio.gather(*(it.vms.CreateVm(request) for _ in range(8)))
    assert {answer.SerializeToString() for answer in answers} == {answers[0].SerializeToString()}
    request.user_id = str(uuid.uuid4())
    with pytest.raises(MeshError) as reused:
        await it.vms.CreateVm(request)
    assert reused.value.reason == "REQUEST_ID_REUSED"
    with pytest.raises(MeshError) as second:
        await it.create(user_id=answers[0].vm.user_id)
    assert (second.value.reason, second.value.metadata["vm_id"]) == ("VM_ALREADY_EXISTS", answers[0].vm.vm_id)


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
    await stop(it, vm.vm_id)


async def test_a_vmm_that_died_while_nobody_looked_is_started_again(it: Node) -> None:
    """A VM whose VMM is gone when the hypervisor comes back runs again in the next epoch."""
    vm = await it.running()
    await it.stop()
    os.kill(vm.vmm_pid, signal.SIGKILL)
    await it.start()
    again = await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)
    assert again.restart_count == 1


async def test_a_killed_vmm_is_started_again(it: Node) -> None:
    """Kill -9 of a VMM is seen, told with its reason, and made good in a new epoch."""
    vm = await it.running()
    os.kill(vm.vmm_pid, signal.SIGKILL)
    died = await it.until(vm.vm_id, vm_pb2.VM_STATE_BACKOFF)
    assert died.reason == "VMM_EXITED"
    again = await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)
    assert again.vmm_pid != vm.vmm_pid


async def test_a_vm_that_never_comes_up_is_given_up(hub: Hub, place: Path) -> None:
    """A guest that says no Hello is tried as its policy says, then FAILED with what to do; a start tries again."""
    fault = hub.faults.add(Fault(point="guest.hello", kind=FaultKind.SILENT, times=1000))
    async with node(place, hub.binary, boot_timeout=timedelta(seconds=0.5)) as it:
        policy = common_container_pb2.RestartPolicy(max_restarts=2)
        policy.initial_backoff.FromMilliseconds(10)
        vm = await it.create(restart_policy=policy)
        failed = await it.until(vm.vm_id, vm_pb2.VM_STATE_FAILED)
        assert (failed.reason, failed.epoch) == ("HELLO_TIMEOUT", 3)
        assert "start or recycle it" in failed.message
        fault.times = 0
        await it.stop()
        await it.start(boot_timeout=timedelta(seconds=SECONDS))
        await it.vms.StartVm(vm_service_pb2.StartVmRequest(**wish(vm.vm_id)))
        again = await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING)
        assert again.restart_count == 0


@pytest.mark.parametrize("point", ["vm.create", "vm.boot"])
async def test_a_refused_boot_is_tried_again(it: Node, hub: Hub, point: str) -> None:
    """A VMM that refuses leaves nothing behind, and the next try succeeds."""
    hub.faults.add(Fault(point=point, kind=FaultKind.FAIL))
    vm = await it.create()
    assert (await it.until(vm.vm_id, vm_pb2.VM_STATE_BACKOFF)).reason == "BOOT_FAILED"
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)


async def test_an_image_that_is_gone_is_named(it: Node, place: Path) -> None:
    """A VM whose image was removed is tried, says which image it misses, and starts when the image is back."""
    vm = await it.running()
    await stop(it, vm.vm_id)
    image = place / "state" / "images" / vm.spec.guest_image.removeprefix("sha256:")
    image.rename(place / "elsewhere")
    await it.vms.StartVm(vm_service_pb2.StartVmRequest(**wish(vm.vm_id)))
    missing = await it.until_vm(vm.vm_id, lambda now: now.reason == "IMAGE_MISSING")
    assert vm.spec.guest_image in missing.message
    (place / "elsewhere").rename(image)
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING)


async def test_a_guest_that_boots_again_by_itself_is_not_believed(it: Node, hub: Hub) -> None:
    """Another boot in the same epoch ends it; the next epoch has one boot again."""
    vm = await it.running()
    hub.process(next((it.run_dir / "vm").iterdir())).machine.guest.reboot()
    died = await it.until_vm(vm.vm_id, lambda now: now.state == vm_pb2.VM_STATE_BACKOFF)
    assert died.reason == "GUEST_REBOOTED"
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)


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
    await stop(it, vm.vm_id)
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
    await stop(it, vm.vm_id)
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


async def test_containers_start_stop_and_come_back_with_their_vm(it: Node, image: str) -> None:
    """A container runs in its generation, stops when wished, and starts with its VM's next epoch if it is wanted."""
    vm = await it.running()
    running = await it.start_container(vm.vm_id, image, "live")
    assert (running.status.state, running.generation) == (common_container_pb2.CONTAINER_STATE_RUNNING, 1)
    await it.start_container(vm.vm_id, image, "side")
    stopped = await it.containers.StopContainer(
        container_service_pb2.StopContainerRequest(container_name="side", **wish(vm.vm_id))
    )
    assert stopped.container.status.state == common_container_pb2.CONTAINER_STATE_STOPPED
    again = await it.containers.RestartContainer(
        container_service_pb2.RestartContainerRequest(container_name="live", **wish(vm.vm_id))
    )
    assert again.container.generation == 2
    await it.vms.RecycleVm(vm_service_pb2.RecycleVmRequest(**wish(vm.vm_id)))
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)
    live = await it.until_container(vm.vm_id, "live", common_container_pb2.CONTAINER_STATE_RUNNING)
    assert (live.generation, live.epoch) == (3, 2)
    assert (await it.container(vm.vm_id, "side")).status.state == common_container_pb2.CONTAINER_STATE_STOPPED


async def test_a_container_wished_while_its_vm_starts_is_pending_then_runs(it: Node, image: str) -> None:
    """StartContainer answers PENDING at once before the VM runs, and the container comes up with it."""
    vm = await it.running()
    await stop(it, vm.vm_id)
    with pytest.raises(MeshError) as refused:
        await it.start_container(vm.vm_id, image)
    assert refused.value.reason == "VM_NOT_RUNNING"
    await it.vms.StartVm(vm_service_pb2.StartVmRequest(**wish(vm.vm_id)))
    container = await it.start_container(vm.vm_id, image)
    assert container.generation == 1
    await it.until_container(vm.vm_id, "app", common_container_pb2.CONTAINER_STATE_RUNNING)


async def test_a_start_sent_again_joins_the_first(it: Node, image: str) -> None:
    """The same StartContainer many times at once starts one generation and answers all alike."""
    vm = await it.running()
    request = container_service_pb2.StartContainerRequest(
        container_name="app", spec=common_container_pb2.ContainerSpec(image=image), **wish(vm.vm_id)
    )
    answers = await asyncio.gather(*(it.containers.StartContainer(request) for _ in range(6)))
    assert {answer.container.generation for answer in answers} == {1}


async def test_a_command_runs_and_its_output_comes_back(it: Node, image: str) -> None:
    """Exec passes frames both ways; what stands after the opening is checked here, not in the guest."""
    vm = await it.running()
    await it.start_container(vm.vm_id, image)
    opening = exec_pb2.ExecOpen(vm_id=vm.vm_id, container_name="app", exec_id=str(uuid.uuid4()), argv=["cat"])

    async def frames() -> AsyncIterator[container_service_pb2.ExecRequest]:
        yield container_service_pb2.ExecRequest(input=exec_pb2.ExecInput(open=opening))
        stdin = exec_pb2.ExecStdin(data=b"hello", eof=True)
        yield container_service_pb2.ExecRequest(input=exec_pb2.ExecInput(stdin=stdin))

    said = b""
    async for answer in it.containers.Exec(frames()):
        said += answer.output.data.data
        if answer.output.HasField("exited"):
            assert answer.output.exited.exit_code == 0
    assert said == b"hello"

    async def without_opening() -> AsyncIterator[container_service_pb2.ExecRequest]:
        yield container_service_pb2.ExecRequest(input=exec_pb2.ExecInput(stdin=exec_pb2.ExecStdin(data=b"x")))

    with pytest.raises(MeshError) as refused:
        await anext(it.containers.Exec(without_opening()))
    assert refused.value.reason == "INVALID_REQUEST"


async def test_health_names_the_layer_that_is_ill(it: Node) -> None:
    """A well VM is SERVING in every layer; with its VMM stopped by a signal the process lives and its API does not."""
    vm = await it.running()
    request = vm_service_pb2.CheckVmHealthRequest(vm_id=vm.vm_id)
    well = await it.vms.CheckVmHealth(request)
    assert well.status == health_pb2.HEALTH_STATUS_SERVING
    assert [layer.layer for layer in well.layers] == ["vmm_process", "vmm_api", "agent"]
    await stop(it, vm.vm_id)
    ill = await it.vms.CheckVmHealth(request)
    assert {layer.status for layer in ill.layers} == {health_pb2.HEALTH_STATUS_NOT_SERVING}
    assert "start it" in ill.layers[0].message


async def test_a_silent_guest_is_asked_and_then_given_up(hub: Hub, place: Path) -> None:
    """A guest that reports no more and does not answer is ended for it; the next epoch is heard again."""

    class Struck(SimulatedGuest):
        async def talk(self, stub: agent_service_pb2_grpc.AgentServiceAsyncStub) -> None:
            await self.say_hello(stub)
            if self.epoch == 1:
                await asyncio.Event().wait()
            await super().talk(stub)

        def listens(self, port: int) -> bool:
            return self.epoch != 1 and super().listens(port)

    hub.make_guest = Struck
    async with node(place, hub.binary, heartbeat_interval=0.3) as it:
        vm = await it.running()
        assert (await it.until(vm.vm_id, vm_pb2.VM_STATE_BACKOFF)).reason == "GUEST_SILENT"
        await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)


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
    assert len(hub.processes) == 0


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
