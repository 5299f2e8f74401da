"""A real hypervisor over simulated VMs: what callers wish of VMs and containers comes true, whatever they do."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cellmesh.api.common.v1 import container_pb2 as common_container_pb2
from cellmesh.api.common.v1 import exec_pb2, health_pb2
from cellmesh.api.guest.v1 import agent_service_pb2_grpc
from cellmesh.api.guest.v1.agent_service_pb2 import HelloRequest, HelloResponse
from cellmesh.api.hypervisor.v1 import (
    container_service_pb2,
    vm_pb2,
    vm_service_pb2,
)
from cellmesh.mesh.errors import MeshError
from simulator.faults import Fault, FaultKind
from simulator.guest import SimulatedGuest
from simulator.hub import Hub
from simulator.servicers import ContainerServicer
from support.commands import Box, ExecStream, refusals_of
from support.node import SECONDS, Node, node, wish

pytestmark = pytest.mark.asyncio

Variable = common_container_pb2.EnvironmentVariable


def states(events: list) -> list[str]:  # type: ignore[type-arg]  # events of the contract
    """Return the states a VM's events say it went to."""
    return [vm_pb2.VmState.Name(e.vm_state_changed.to)[9:] for e in events if e.HasField("vm_state_changed")]


async def deaths(it: Node, vm_id: str) -> list[str]:
    """Return why each epoch that was over before its time was. A watch that begins now may find the next one begun."""
    changes = (event.vm_state_changed for event in await it.all_events(vm_id))
    return [change.reason for change in changes if change.to == vm_pb2.VM_STATE_BACKOFF]


async def test_a_vm_lives_and_dies_as_wished(it: Node) -> None:
    """Create, stop, start, recycle and delete each end where they should, in one epoch a start, told in order."""
    vm = await it.running()
    assert (vm.epoch, vm.desired_state) == (1, vm_pb2.DESIRED_STATE_RUNNING)
    assert vm.vmm_pid > 0
    stopped = await it.stop_vm(vm.vm_id)
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

    class Overheard:
        def __init__(self, stub: agent_service_pb2_grpc.AgentServiceAsyncStub) -> None:
            self._stub = stub

        async def Hello(self, request: HelloRequest, *, timeout: float) -> HelloResponse:  # noqa: ASYNC109  # as gRPC has it
            answer = await self._stub.Hello(request, timeout=timeout)
            told.put_nowait((answer.epoch, answer.discard_layers))
            return answer

    class Listening(SimulatedGuest):
        async def say_hello(self, stub: agent_service_pb2_grpc.AgentServiceAsyncStub) -> None:
            await super().say_hello(Overheard(stub))  # type: ignore[arg-type]  # it has all that a Hello takes

    hub.make_guest = Listening
    vm = await it.running()
    await it.vms.RecycleVm(vm_service_pb2.RecycleVmRequest(**wish(vm.vm_id)))
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)
    await it.stop_vm(vm.vm_id)
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


async def test_a_killed_vmm_is_started_again(it: Node) -> None:
    """Kill -9 of a VMM is seen, told with its reason, and made good in a new epoch."""
    vm = await it.running()
    os.kill(vm.vmm_pid, signal.SIGKILL)
    again = await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)
    assert await deaths(it, vm.vm_id) == ["VMM_EXITED"]
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
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)
    assert await deaths(it, vm.vm_id) == ["BOOT_FAILED"]


async def test_an_image_that_is_gone_is_named(it: Node, place: Path) -> None:
    """A VM whose image was removed is tried, says which image it misses, and starts when the image is back."""
    vm = await it.running()
    await it.stop_vm(vm.vm_id)
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
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)
    assert await deaths(it, vm.vm_id) == ["GUEST_REBOOTED"]


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
    await it.stop_vm(vm.vm_id)
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


@pytest.mark.parametrize(
    ("fields", "field", "limit"),
    [
        ({"argv": ["a", "b" * 65_537]}, "argv[1]", "65536"),
        ({"argv": ["a"] * 65}, "argv", "64"),
        ({"argv": ["a"], "environment": [Variable(name="V", value="v" * 4097)]}, "environment[0].value", "4096"),
        ({"argv": ["a"], "environment": [Variable(name=f"V{n}") for n in range(65)]}, "environment", "64"),
        ({"argv": ["a"], "environment": [Variable(name="V" * 129)]}, "environment[0].name", "128"),
        ({"argv": ["a"], "working_dir": "/" + "d" * 256}, "working_dir", "256"),
        # Each within its own limit, two bytes a character.
        ({"argv": ["\N{GREEK SMALL LETTER PI}" * 65_000] * 2}, "", "258048"),
    ],
    ids=["an argument", "arguments", "a value", "variables", "a name", "a directory", "all"],
)
async def test_a_command_that_is_too_large_is_refused_here(
    it: Node, hub: Hub, image: str, fields: dict[str, Any], field: str, limit: str
) -> None:
    """The refusal names the field and its limit, and the guest hears nothing of it; at the limits the command runs."""
    heard = []

    class Servicer(ContainerServicer):
        async def Exec(self, requests: Any, context: Any) -> Any:
            heard.append(requests)
            async for answer in super().Exec(requests, context):
                yield answer

    class Guest(SimulatedGuest):
        def make_container_servicer(self) -> ContainerServicer:
            return Servicer(self)

    hub.make_guest = Guest
    vm = await it.running()
    await it.start_container(vm.vm_id, image)
    box = Box(node=it, vm_id=vm.vm_id, name="app")
    with pytest.raises(MeshError) as refused:
        async with ExecStream(it, box.opening(*fields.pop("argv"), **fields)) as stream:
            await stream.read()
    (violation,) = refused.value.field_violations
    assert refused.value.reason == "INVALID_REQUEST"
    assert violation.field == ("input.open." + field).rstrip(".")
    assert limit in violation.description
    assert limit in refused.value.message
    assert heard == []
    said = await box.run("echo", "a" * 65_536, environment=[Variable(name="V" * 128, value="v" * 4096)])
    assert said.text == "a" * 65_536
    assert len(heard) == 1


async def test_a_container_that_was_stopped_before_its_vm_started_again_does_not_run(it: Node, image: str) -> None:
    """Command, output and stats of it are refused as of one that does not run; its new agent has never heard of it."""
    vm = await it.running()
    await it.start_container(vm.vm_id, image)
    await it.containers.StopContainer(
        container_service_pb2.StopContainerRequest(container_name="app", **wish(vm.vm_id))
    )
    await it.stop_vm(vm.vm_id)
    await it.vms.StartVm(vm_service_pb2.StartVmRequest(**wish(vm.vm_id)))
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)
    assert await refusals_of(it, vm.vm_id, "app") == ["CONTAINER_NOT_RUNNING"] * 3
    assert await refusals_of(it, vm.vm_id, "nobody") == ["CONTAINER_NOT_FOUND"] * 3
    await it.start_container(vm.vm_id, image)
    assert await refusals_of(it, vm.vm_id, "app") == []


async def test_health_names_the_layer_that_is_ill(it: Node) -> None:
    """A well VM is SERVING in every layer; with its VMM stopped by a signal the process lives and its API does not."""
    vm = await it.running()
    request = vm_service_pb2.CheckVmHealthRequest(vm_id=vm.vm_id)
    well = await it.vms.CheckVmHealth(request)
    assert well.status == health_pb2.HEALTH_STATUS_SERVING
    assert [layer.layer for layer in well.layers] == ["vmm_process", "vmm_api", "agent"]
    await it.stop_vm(vm.vm_id)
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
        vm = await it.create()
        await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=2)
        assert (await deaths(it, vm.vm_id))[0] == "GUEST_SILENT"
