"""Random lives of ten VMs on one node, with everything that may go wrong; and what must hold is looked at."""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import Message
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cellmesh.api.common.v1 import container_pb2
from cellmesh.api.hypervisor.v1 import (
    container_service_pb2,
    container_service_pb2_grpc,
    route_pb2,
    route_service_pb2,
    route_service_pb2_grpc,
    vm_pb2,
    vm_service_pb2,
)
from cellmesh.hypervisor import failpoints
from cellmesh.hypervisor.domain.container import ContainerState
from cellmesh.hypervisor.domain.vm import DesiredState, VmState
from cellmesh.hypervisor.vmm import sweep
from cellmesh.hypervisor.vmm.layout import short
from cellmesh.mesh.channel import MeshChannel, unix_channel
from cellmesh.mesh.errors import MeshError
from simulator import Fault, FaultKind
from support.invariants import Broken, Invariant
from support.ledger import Ledger
from support.world import Life, World

VMS = 10
_SETTLED_SECONDS = 90.0
_PAUSE = 0.01
_HANGS_SECONDS = 0.05
_CONTAINER = "app"
_CONTAINER_SECONDS = 0.3
_AT_REST = {DesiredState.RUNNING: VmState.RUNNING, DesiredState.STOPPED: VmState.STOPPED}


class Histories(RuleBasedStateMachine):
    """Wishes and accidents, of ten VMs at once."""

    world: World

    @initialize()
    def begin(self) -> None:
        """Create the VMs."""
        if self.world.found:
            raise self.world.found[0]
        self.ledger = Ledger(self.world.it.state_dir)
        self.lives = [self._life() for _ in range(VMS)]
        for life in self.lives:
            life.vm_id = self._told(life, "Create", life.create).vm.vm_id

    @rule(index=st.integers(0, VMS - 1), verb=st.sampled_from(("Start", "Stop", "Recycle")))
    def wish(self, index: int, verb: str) -> None:
        """Wish something of one VM."""
        life = self.lives[index]
        self._told(life, verb, _request(verb, life.vm_id))

    @rule(
        index=st.integers(0, VMS - 1),
        verbs=st.lists(st.sampled_from(("Start", "Stop", "Recycle")), min_size=2, max_size=4),
    )
    def wish_at_once(self, index: int, verbs: list[str]) -> None:
        """Wish several things of one VM at the same moment."""
        life = self.lives[index]
        requests = [(verb, _request(verb, life.vm_id)) for verb in verbs]

        async def all_of_them() -> list[Message]:
            return await asyncio.gather(*(self._ask(verb, request) for verb, request in requests))

        answers = self.world.run(all_of_them())
        life.answers += [(verb, request, answer) for (verb, request), answer in zip(requests, answers, strict=True)]

    @rule(index=st.integers(0, VMS - 1), which=st.integers(0, 100))
    def ask_again(self, index: int, which: int) -> None:
        """Send a wish a second time: it gets its first answer, whatever happened since."""
        life = self.lives[index]
        verb, request, answer = life.answers[which % len(life.answers)]
        self.world.run(self._repeat(verb, request, answer))

    @rule(index=st.integers(0, VMS - 1))
    def start_container(self, index: int) -> None:
        """Wish for a container, where the VM takes one, and wait for no end."""
        self.world.run(self._try_container(self.lives[index].vm_id))

    @rule(index=st.integers(0, VMS - 1), prefix=st.sampled_from(("/", "/dev/")))
    def switch_route(self, index: int, prefix: str) -> None:
        """Wish that a path leads to the container, which may have to be wished for first."""
        life = self.lives[index]
        if not self.ledger.containers(life.vm_id):
            self.world.run(self._try_container(life.vm_id))
        request = route_service_pb2.SwitchRouteRequest(
            request_id=str(uuid.uuid4()),
            vm_id=life.vm_id,
            prefix=prefix,
            target=route_pb2.RouteTarget(container_name=_CONTAINER),
        )
        self.world.run(self._try_switch(request))

    @rule(index=st.integers(0, VMS - 1))
    def kill_vmm(self, index: int) -> None:
        """Let the VMM of one VM die."""
        process = self.world.process(self.lives[index].vm_id)
        if process is not None and process.runs():
            process.kill()

    @rule(index=st.integers(0, VMS - 1), what=st.sampled_from(("reboot", "power_off", "reset")))
    def upset_guest(self, index: int, what: str) -> None:
        """Let a guest boot again or go out by itself, or its connections break."""
        process = self.world.process(self.lives[index].vm_id)
        if process is None or process.machine is None or process.machine.guest is None:
            return
        if what != "reset":
            getattr(process.machine.guest, what)()
        elif process.machine.vsock is not None:
            process.machine.vsock.reset_connections()

    @rule(
        index=st.integers(0, VMS - 1),
        point=st.sampled_from(("vmm.ping", "vm.create", "vm.boot", "vm.info", "vm.power-button", "vm.add-disk")),
        kind=st.sampled_from(
            (FaultKind.LOSE_REPLY, FaultKind.FAIL, FaultKind.CRASH_BEFORE, FaultKind.CRASH_AFTER, FaultKind.HANG)
        ),
    )
    def sicken_api(self, index: int, point: str, kind: FaultKind) -> None:
        """Let the next call of one kind to one VMM go wrong; one that hangs does so for a moment."""
        directory = self.world.it.run_dir / "vm" / short(self.lives[index].vm_id)
        fault = self.world.hub.faults.add(Fault(point=point, kind=kind, applies=functools.partial(_is, directory)))
        if kind is FaultKind.HANG:
            self.world.loop.call_later(_HANGS_SECONDS, fault.release)

    @rule(index=st.integers(0, VMS - 1))
    def lose_hello(self, index: int) -> None:
        """Let the next guest of one VM say nothing, so that its boot times out."""
        directory = self.world.it.run_dir / "vm" / short(self.lives[index].vm_id)
        fault = Fault(point="guest.hello", kind=FaultKind.SILENT, applies=functools.partial(_is, directory))
        self.world.hub.faults.add(fault)

    @rule()
    def kill_hypervisor(self) -> None:
        """Kill the hypervisor and start another."""
        self.world.run(self._killed())

    @rule(name=st.sampled_from(failpoints.NAMES))
    def doom_hypervisor(self, name: str) -> None:
        """Have a hypervisor that dies at its next step of one kind."""
        self.world.run(self._killed(failpoint=name))

    @rule(milliseconds=st.integers(1, 100))
    def let_time_pass(self, milliseconds: int) -> None:
        """Let what is under way go on for a while, so that accidents find it at another step."""
        self.world.run(asyncio.sleep(milliseconds / 1000))

    @invariant()
    def has_one_vmm(self) -> None:
        """Look after every step; a VM that had two for a moment may never come to rest."""
        self.world.hold(
            [Broken(Invariant.ONE_VMM, f"two at once in {directory}") for directory in self.world.hub.doubles]
        )

    def teardown(self) -> None:
        """Look whether all came to rest as wished, and whether all of it can be taken away."""
        lives = getattr(self, "lives", [])
        # A life without a VM means that `begin` was cut short: what cut it is told already.
        if not lives or not all(life.vm_id for life in lives) or self.world.found:
            return
        self.world.hub.faults.clear()
        self._hold()
        self.world.run(self._settled())
        for life in self.lives:
            for verb, request, answer in life.answers:
                self.world.run(self._repeat(verb, request, answer))
        self._hold()
        self.world.run(self._deleted())
        self._hold()
        left = [found for life in self.lives for found in self._left(life.vm_id)]
        self.world.hold([Broken(Invariant.NOTHING_LEFT, str(left))] if left else [])

    def _hold(self) -> None:
        self.has_one_vmm()
        self.world.hold([fault for life in self.lives for fault in self.ledger.faults(life.vm_id)])

    def _life(self) -> Life:
        user = str(uuid.uuid4())
        spec = vm_pb2.VmSpec()
        policy = spec.restart_policy
        policy.mode, policy.max_restarts = container_pb2.RESTART_MODE_ALWAYS, 100
        policy.initial_backoff.FromMilliseconds(10)
        policy.max_backoff.FromMilliseconds(50)
        create = vm_service_pb2.CreateVmRequest(request_id=str(uuid.uuid4()), user_id=user, spec=spec)
        return Life(user=user, create=create)

    def _told(self, life: Life, verb: str, request: Any) -> Any:
        answer = self.world.run(self._ask(verb, request))
        life.answers.append((verb, request, answer))
        return answer

    async def _ask(self, verb: str, request: Any, *, before: int = 0) -> Any:
        """Wish something and return the answer; `before` is how often it was wished already."""
        sent = before

        async def send() -> Any:
            nonlocal sent
            sent += 1
            return await getattr(self.world.it.vms, f"{verb}Vm")(request, timeout=30.0)

        try:
            return await self.world.call(send)
        except MeshError as error:
            # What a hypervisor that died may have taken is a repeated wish to the next one.
            broken = Invariant.WISHES if sent == 1 else Invariant.ANSWERS
            raise Broken(broken, f"{verb} was refused: {error}") from error

    async def _repeat(self, verb: str, request: Any, answer: Message) -> None:
        again = await self._ask(verb, request, before=1)
        if again != answer:
            raise Broken(Invariant.ANSWERS, f"{verb} was answered {answer}, then {again}")

    async def _try_container(self, vm_id: str) -> None:
        request = container_service_pb2.StartContainerRequest(
            request_id=str(uuid.uuid4()),
            vm_id=vm_id,
            container_name=_CONTAINER,
            spec=container_pb2.ContainerSpec(image=self.world.image),
        )

        async def start(channel: MeshChannel) -> None:
            stub = container_service_pb2_grpc.ContainerServiceStub(channel)
            await stub.StartContainer(request, timeout=_CONTAINER_SECONDS)

        try:
            await self._call_alone(start)
        except MeshError as error:
            if error.reason in {"INTERNAL", "RESPONSE_INVALID"}:
                raise Broken(Invariant.WISHES, f"StartContainer: {error}") from error

    async def _try_switch(self, request: route_service_pb2.SwitchRouteRequest) -> None:
        async def switch(channel: MeshChannel) -> None:
            await route_service_pb2_grpc.RouteServiceStub(channel).SwitchRoute(request, timeout=30.0)

        try:
            await self._call_alone(switch)
        except MeshError as error:
            # No edge is there to serve what is stored.
            if error.reason not in {"CONTAINER_NOT_FOUND", "EDGE_UNREACHABLE"}:
                raise Broken(Invariant.WISHES, f"SwitchRoute: {error}") from error

    async def _call_alone(self, make: Callable[[MeshChannel], Awaitable[None]]) -> None:
        """Call on a connection of its own: what does not answer behind the hypervisor must not make us doubt it."""

        async def called() -> None:
            # Another one for each hypervisor: a connection remembers for a while that nobody was there.
            async with unix_channel(self.world.it.run_dir / "operator.sock", downstream="hypervisor") as channel:
                await make(channel)

        await self.world.call(called)

    async def _killed(self, *, failpoint: str = "") -> None:
        process = self.world.it.process
        assert process is not None
        process.kill()
        await process.wait()
        await self.world.restarted(failpoint=failpoint)

    async def _settled(self) -> None:
        """Wait until every VM is as it was wished, whoever has to be started anew for it."""
        try:
            async with asyncio.timeout(_SETTLED_SECONDS):
                while restless := [life for life in self.lives if not self._rests(life)]:
                    await self._look_after_hypervisor()
        except TimeoutError:
            stories = [str(self.ledger.vm(life.vm_id)) for life in restless]
            log = self.world.it.log.read_text()[-3000:]
            raise Broken(Invariant.REST, f"not after {_SETTLED_SECONDS:g} s: {stories}; {log}") from None

    async def _look_after_hypervisor(self) -> None:
        # First things first: who has two VMMs never comes to rest.
        self.has_one_vmm()
        if self.world.dead:
            await self.world.restarted()
        await asyncio.sleep(_PAUSE)

    def _rests(self, life: Life) -> bool:
        vm, process = self.ledger.vm(life.vm_id), self.world.process(life.vm_id)
        if vm is None:
            raise Broken(Invariant.REST, f"VM {life.vm_id} is lost")
        if vm.state is not _AT_REST[vm.desired]:
            return False
        if vm.state is VmState.STOPPED:
            return process is None
        if vm.recycle_pending:
            return False
        guest_runs = process is not None and process.runs() and process.peer.pid == vm.vmm_pid
        containers = self.ledger.containers(life.vm_id)
        return guest_runs and all(container.status.state is ContainerState.RUNNING for container in containers)

    async def _deleted(self) -> None:
        """Delete all VMs, and wait until none is left."""
        requests = [_request("Delete", life.vm_id) for life in self.lives]
        await asyncio.gather(*(self._ask("Delete", request) for request in requests))
        try:
            async with asyncio.timeout(_SETTLED_SECONDS):
                while any(self.ledger.vm(life.vm_id) or self.world.process(life.vm_id) for life in self.lives):
                    await self._look_after_hypervisor()
        except TimeoutError:
            raise Broken(Invariant.REST, f"not deleted: {self.world.it.log.read_text()[-3000:]}") from None

    def _left(self, vm_id: str) -> list[object]:
        """Return what is still there of a VM."""
        it = self.world.it
        run, state = it.run_dir / "vm" / short(vm_id), it.state_dir / "vm" / vm_id
        uids = [path for path in (it.state_dir / "uids").glob("*") if path.read_text() == vm_id]
        paths = [path for path in (run, state) if path.exists()]
        return [*sweep.vmm_processes(run), *sweep.bridge_processes(run), *paths, *uids]


def _request(verb: str, vm_id: str) -> Any:
    return getattr(vm_service_pb2, f"{verb}VmRequest")(request_id=str(uuid.uuid4()), vm_id=vm_id)


def _is(wanted: object, directory: object) -> bool:
    return directory == wanted
