"""Keeps one VM as it is wanted: looks what is wanted and what is, takes one step, and waits for the next change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from cellmesh.hypervisor.domain.container import Container
from cellmesh.hypervisor.domain.vm import LIVE_STATES, DesiredState, Reason, Vm, VmState
from cellmesh.hypervisor.lifecycle.sessions import Session
from cellmesh.hypervisor.reconciler import outcomes
from cellmesh.hypervisor.reconciler.bridge import keep_bridge
from cellmesh.hypervisor.reconciler.containers import ContainerReconciler
from cellmesh.hypervisor.reconciler.images import ImageDisks
from cellmesh.hypervisor.reconciler.ingress import Ingress
from cellmesh.hypervisor.reconciler.launch import StartFailed, attached_at_boot, launch
from cellmesh.hypervisor.reconciler.stop import agent_grace, kill_whatever_runs, stop
from cellmesh.hypervisor.reconciler.world import World
from cellmesh.hypervisor.vmm import Doubtful, Exit, Gone, Handle, Running
from cellmesh.hypervisor.vmm.liveness import Silence, Watch
from cellmesh.mesh.errors import MeshError

_UP = frozenset({VmState.STARTING, VmState.RUNNING})
_ADOPTION_SECONDS = 20.0
_ADOPTION_PAUSE = 2.0
# As long as one try may take on a host that is not late: a question, and the wait for a VMM that ends.
_ADOPTION_TRY = 12.0
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_log = structlog.get_logger()


class _Over(Exception):
    """The VM is gone; there is nothing left to keep."""


class VmReconciler:
    """The keeper of one VM. Everything it must not forget is in the store and in the handle file."""

    def __init__(self, world: World, vm_id: str) -> None:
        self._world = world
        self._vm_id = vm_id
        self._adopted = False
        self._handle: Handle | None = None
        self._exit: Exit | None = None
        self._exited: asyncio.Task[None] | None = None
        self._bridge: asyncio.Task[None] | None = None
        self._ingress: Ingress | None = None
        self._containers: ContainerReconciler | None = None
        self._boot: Watch | None = None
        self._silence: Silence | None = None

    async def run(self) -> None:
        """Keep the VM until it is deleted. A step that fails is tried again, ever more slowly."""
        failures = 0
        with self._world.store.changes.watched(self._vm_id) as changed:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    changed.clear()
                    try:
                        pause = await self._step(tasks)
                        failures = 0
                    except _Over:
                        break
                    except Exception as error:
                        # Whatever it is, a full disk or a fault of ours, it must not end the keepers of other VMs.
                        failures += 1
                        pause = min(_FIRST_PAUSE * 2.0 ** min(failures, 10), _LONGEST_PAUSE)
                        _log.error("vm.step_failed", vm_id=self._vm_id, again_in_s=pause, exc_info=error)
                    await _wait(changed, pause)

    async def _step(self, tasks: asyncio.TaskGroup) -> float | None:
        """Take one step towards what is wanted; return the seconds until the next look, None to wait for a change."""
        vm = self._world.store.mirror.vm(self._vm_id)
        if vm is None:
            raise _Over
        containers = self._world.store.mirror.containers(self._vm_id)
        if not self._adopted:
            await self._adopt(tasks, vm)
            self._adopted = True
            return 0.0
        if vm.desired is DesiredState.DELETED and (vm.state is not VmState.QUARANTINED or vm.force_delete):
            await self._delete(vm)
        match vm.state:
            case VmState.FAILED if vm.desired is DesiredState.RUNNING:
                return None
            case VmState.PENDING | VmState.BACKOFF | VmState.STOPPED | VmState.FAILED:
                return await self._at_rest(tasks, vm)
            case VmState.STARTING | VmState.RUNNING if vm.desired is DesiredState.RUNNING and not vm.recycle_pending:
                return await self._up(vm, containers)
            case VmState.STARTING | VmState.RUNNING | VmState.STOPPING:
                await self._stop(vm, containers)
                return 0.0
        return None

    # At rest: nothing of the VM runs.

    async def _at_rest(self, tasks: asyncio.TaskGroup, vm: Vm) -> float | None:
        if vm.desired is DesiredState.STOPPED:
            await outcomes.move(self._world, vm.vm_id, VmState.STOPPED)
            return None
        if vm.state is VmState.STOPPED:
            await outcomes.move(self._world, vm.vm_id, VmState.PENDING)
            return 0.0
        if vm.next_try_time is not None and (wait := (vm.next_try_time - datetime.now(UTC)).total_seconds()) > 0:
            return wait
        async with self._world.turns:
            starting = await outcomes.begin_epoch(self._world, vm.vm_id)
            if starting is None:
                return self._world.timing.room_poll.total_seconds()
            self._world.failpoint("start.epoch_committed")
            # Containers may have been wished for while this start waited for its turn.
            await self._launch(tasks, starting, self._world.store.mirror.containers(vm.vm_id))
        return 0.0

    async def _launch(self, tasks: asyncio.TaskGroup, vm: Vm, containers: Sequence[Container]) -> None:
        try:
            handle = await launch(self._world, vm, containers)
        except StartFailed as error:
            await self._died(vm, Reason(error.reason), error.message)
            return
        self._take(tasks, handle, attached=attached_at_boot(containers), fresh=True)
        await outcomes.put_pid(self._world, vm.vm_id, vm.epoch, handle.pid)
        self._world.failpoint("start.pid_committed")

    # Up: a VMM runs for the VM, or did until a moment ago.

    async def _up(self, vm: Vm, containers: Sequence[Container]) -> float | None:
        session = self._world.sessions.get(vm.vm_id)
        if (reason := self._death(vm, session)) is not None:
            await self._died(vm, *reason)
            return 0.0
        if vm.state is VmState.STARTING:
            return None if self._boot is None else self._boot.remaining(self._boot_seconds)
        if self._ingress is not None:
            await self._ingress.ensure()
        again = self._containers.reconcile(containers) if self._containers is not None else None
        quiet = self._world.timing.silence - (0.0 if session is None else session.silence())
        if quiet <= 0:
            quiet = await self._ask(vm, session)
        else:
            self._silence = None
        return quiet if again is None else min(quiet, again)

    def _death(self, vm: Vm, session: Session | None) -> tuple[Reason, str] | None:
        """Return why the VM's epoch is over, or None while it is not."""
        if self._exit is not None:
            how = f"signal {self._exit.signal}" if self._exit.signal else f"code {self._exit.code}"
            return Reason.VMM_EXITED, f"The VMM ended by itself ({self._exit.reason.value}, {how})."
        if self._handle is None or session is None:
            return Reason.VMM_EXITED, "The VMM ended while nobody looked."
        if session.rebooted:
            return Reason.GUEST_REBOOTED, "The guest booted again by itself; its state is not to be trusted."
        if vm.state is VmState.STARTING and self._boot is not None:
            window = self._boot.window()
            if window.is_over(self._boot_seconds):
                text = f"The guest's agent said no Hello within {window.passed:.3g} s; {window}. Read its console log."
                return Reason.HELLO_TIMEOUT, text
        return None

    @property
    def _boot_seconds(self) -> float:
        return self._world.timing.boot_timeout.total_seconds()

    async def _ask(self, vm: Vm, session: Session | None) -> float:
        """Ask a silent guest whether it lives; end its epoch if it is dead. Return the seconds until the next look."""
        timing = self._world.timing
        if self._silence is None:
            self._silence = Silence(self._watch(), limit=timing.answer_limit)
        begun, within = time.monotonic(), timing.probe_timeout.total_seconds()
        try:
            await self._world.guests.info(vm.vm_id, vm.epoch, within=timing.probe_timeout)
        except MeshError as error:
            dead = self._silence.unanswered(took=time.monotonic() - begun, within=within)
            if dead is None:
                return timing.question_pause.total_seconds()
            await self._died(vm, Reason.GUEST_SILENT, f"The guest fell silent. {dead} ({error.message})")
        else:
            self._silence = None
            if session is not None:
                session.hear()
        return 0.0

    def _watch(self) -> Watch:
        """Begin to measure the VMM."""
        pid = 0 if self._handle is None else self._handle.pid
        return Watch.of(pid)

    async def _died(self, vm: Vm, reason: Reason, message: str) -> None:
        _log.warning("vm.died", vm_id=vm.vm_id, epoch=vm.epoch, reason=reason.value, message=message)
        await self._clear_away()
        await outcomes.fail(self._world, vm.vm_id, vm.epoch, reason, message)

    async def _stop(self, vm: Vm, containers: Sequence[Container]) -> None:
        # A guest that never said Hello has nothing to lose; one found STOPPING may or may not have been asked.
        asked = vm.state is not VmState.STARTING
        if vm.state is not VmState.STOPPING:
            await outcomes.move(self._world, vm.vm_id, VmState.STOPPING)
            self._world.failpoint("stop.stopping_committed")
        # No request is to come in any more when its containers are told to end.
        await self._world.edge.settled(self._vm_id)
        if self._containers is not None:
            await self._containers.cancel()
        if self._handle is not None and self._exit is None:
            grace = agent_grace(containers) if asked else None
            await stop(self._world, self._handle, grace=grace)
        self._world.failpoint("stop.vmm_gone")
        await self._clear_away()
        self._world.failpoint("stop.cleaned")
        await outcomes.come_to_rest(self._world, vm.vm_id)
        self._world.failpoint("stop.committed")

    async def _delete(self, vm: Vm) -> None:
        """Remove the VM with its data; nothing in it gets grace, as nothing it could still write is kept."""
        await outcomes.move(self._world, vm.vm_id, VmState.DELETING)
        self._world.failpoint("delete.deleting_committed")
        if vm.force_delete:
            await kill_whatever_runs(self._world, vm.vm_id)
        await self._end()
        await self._world.vmm.destroy(vm.vm_id)
        self._world.handles.pop(vm.vm_id, None)
        self._world.failpoint("delete.destroyed")
        await outcomes.forget(self._world, vm.vm_id)
        raise _Over

    async def _clear_away(self) -> None:
        """Make sure that nothing of the VM runs or lies in its run directory."""
        await self._end()
        await self._world.vmm.clean(self._vm_id)
        self._world.handles.pop(self._vm_id, None)
        self._handle = self._exit = None

    async def _end(self) -> None:
        """End the VMM and everybody who deals with it, and leave the cleaning to who called."""
        if self._containers is not None:
            await self._containers.cancel()
            self._containers = None
        if self._bridge is not None:
            self._bridge.cancel()
            await asyncio.wait({self._bridge})
            self._bridge = None
        self._ingress = None
        self._world.sessions.end(self._vm_id)
        await self._world.guests.hang_up(self._vm_id)
        if self._handle is not None and self._exit is None:
            await self._world.vmm.kill(self._handle)
        if self._exited is not None:
            self._exited.cancel()
            self._exited = None
        await self._world.sockets.close(self._vm_id)

    # After a start of the hypervisor: what of the VM still runs?

    async def _adopt(self, tasks: asyncio.TaskGroup, vm: Vm) -> None:
        if vm.state not in LIVE_STATES:
            return
        silence: Silence | None = None
        while True:
            begun = time.monotonic()
            match await self._world.vmm.adopt(vm.vm_id):
                case Running(handle=handle) if handle.epoch == vm.epoch:
                    await self._listen_again(tasks, vm, handle)
                    return
                case Running(handle=handle):
                    await self._quarantine(vm, f"VMM {handle.pid} runs epoch {handle.epoch}, not {vm.epoch}.")
                    return
                case Gone(reason=reason):
                    await self._found_gone(vm, reason)
                    return
                case Doubtful(handle=Handle() as handle, reason=reason):
                    # Certainly ours: either we died while starting it, or it hangs; a busy one gets time to answer.
                    if silence is None:
                        silence = Silence(Watch.of(handle.pid), limit=_ADOPTION_SECONDS)
                    dead = silence.unanswered(took=time.monotonic() - begun, within=_ADOPTION_TRY)
                    if reason == "not_booted" or dead is not None:
                        self._handle = handle
                        await self._found_gone(vm, reason if dead is None else f"{reason}: {dead}")
                        return
                    await asyncio.sleep(_ADOPTION_PAUSE)
                case Doubtful(message=message):
                    await self._quarantine(vm, message)
                    return

    async def _listen_again(self, tasks: asyncio.TaskGroup, vm: Vm, handle: Handle) -> None:
        self._world.sessions.begin(vm.vm_id, vm.epoch)
        await self._world.sockets.open(vm.vm_id)
        if vm.vmm_pid != handle.pid:
            # We died after starting it and before noting its process.
            await outcomes.put_pid(self._world, vm.vm_id, vm.epoch, handle.pid)
        # Which disks it has is not remembered: the VMM says it.
        self._take(tasks, handle, attached=None, fresh=False)

    async def _found_gone(self, vm: Vm, reason: str) -> None:
        if vm.state is VmState.STARTING:
            await self._clear_away()
            await outcomes.begin_again(self._world, vm.vm_id)
        elif vm.state is VmState.RUNNING:
            why = Reason.VMM_HUNG if self._handle is not None else Reason.VMM_EXITED
            await self._died(vm, why, f"Its VMM did not outlive the hypervisor's absence ({reason}).")

    async def _quarantine(self, vm: Vm, message: str) -> None:
        text = f"{message} Nothing was touched. Look at it on the node, then delete the VM with force."
        if vm.state is not VmState.DELETING:
            await outcomes.move(
                self._world, vm.vm_id, VmState.QUARANTINED, reason=Reason.ADOPTION_DOUBTFUL, message=text
            )

    def _take(self, tasks: asyncio.TaskGroup, handle: Handle, *, attached: set[str] | None, fresh: bool) -> None:
        """Make a running VMM this VM's."""
        self._handle, self._exit = handle, None
        self._world.handles[self._vm_id] = handle
        self._boot, self._silence = self._watch(), None
        self._ingress = Ingress(self._world, handle, fresh=fresh)
        images = ImageDisks(self._world, tasks, handle, attached=attached)
        self._containers = ContainerReconciler(self._world, tasks, handle, self._ingress, images=images)
        self._bridge = tasks.create_task(
            keep_bridge(self._world, handle, self._bridge_renewed), name=f"bridge of {self._vm_id}"
        )
        self._exited = tasks.create_task(self._wait_exit(handle), name=f"exit of {self._vm_id}")

    def _bridge_renewed(self, handle: Handle) -> None:
        self._handle = self._world.handles[self._vm_id] = handle
        if self._ingress is not None:
            self._ingress.forget()
        self._world.store.changes.notify({self._vm_id})

    async def _wait_exit(self, handle: Handle) -> None:
        self._exit = await self._world.vmm.wait_exit(handle)
        self._world.store.changes.notify({self._vm_id})


async def _wait(changed: asyncio.Event, seconds: float | None) -> None:
    """Wait for a change, at most so long."""
    if seconds is not None and seconds <= 0:
        return
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return
