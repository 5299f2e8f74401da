"""What callers wish of VMs. Each wish is stored with its answer in one transaction and answered at once.

An intent makes its answer of the VM as it was stored.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime

import structlog

from cellmesh.hypervisor.domain import audit
from cellmesh.hypervisor.domain.errors import (
    ImageNotFound,
    VmAlreadyExists,
    VmDeleting,
    VmNotFound,
    VmQuarantined,
)
from cellmesh.hypervisor.domain.route import default_routes
from cellmesh.hypervisor.domain.vm import ColdStart, DesiredState, UserId, Vm, VmId, VmSpec, VmState
from cellmesh.hypervisor.lifecycle.admission import Admission
from cellmesh.hypervisor.store import Reading, Store
from cellmesh.image import ImageError, ImageStore
from cellmesh.service.intent import Answer, Intent
from cellmesh.service.store import NO_FACTS, Action, Facts

_log = structlog.get_logger()
_RESTARTABLE = frozenset({VmState.STOPPED, VmState.BACKOFF, VmState.FAILED})


class Vms:
    """The VMs of the node. `follow` is told of each new one after its commit."""

    def __init__(
        self,
        *,
        store: Store,
        images: ImageStore,
        admission: Admission,
        follow: Callable[[VmId], None],
        failpoint: Callable[[str], None],
    ) -> None:
        self._store = store
        self._images = images
        self._admission = admission
        self._follow = follow
        self._failpoint = failpoint

    async def get(self, vm_id: str) -> Vm:
        """Return the VM; VmNotFound if there is none."""
        async with self._store.reading() as reading:
            return await found(reading, vm_id)

    async def get_of_user(self, user_id: str) -> Vm:
        """Return the user's VM; VmNotFound if there is none."""
        async with self._store.reading() as reading:
            vm = await reading.vm_of_user(user_id)
        if vm is None:
            raise VmNotFound(f"of user {user_id}")
        return vm

    async def list(
        self, *, states: Collection[VmState], after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[Vm]:
        """Return up to `limit` VMs, oldest first."""
        async with self._store.reading() as reading:
            return await reading.vms(states=states, after=after, limit=limit)

    async def create(self, intent: Intent[Answer], user_id: str, spec: VmSpec) -> Answer:
        """Store a new VM, PENDING, wanted RUNNING; an empty `guest_image` is the node's default.

        Raises VmAlreadyExists, ImageNotFound, NodeFull, NodeDraining, RequestIdReused.
        """
        image = self._guest_image(spec.guest_image)
        async with self._store.transaction() as tx:
            if (answer := await tx.answered(intent)) is not None:
                return answer
            if (other := await tx.vm_of_user(user_id)) is not None:
                raise VmAlreadyExists(user_id, other.vm_id)
            if image is None:
                raise _no_image(spec.guest_image)
            await self._admission.admit(tx, spec.memory_bytes)
            vm = Vm(
                vm_id=VmId(str(uuid.uuid4())),
                user_id=UserId(user_id),
                spec=replace(spec, guest_image=image),
                desired=DesiredState.RUNNING,
                state=VmState.PENDING,
                create_time=tx.now,
                update_time=tx.now,
            )
            await tx.add_vm(vm)
            await tx.add_routes(default_routes(vm.vm_id, tx.now))
            await tx.audit(
                audit.CREATE_VM,
                resource=audit.vm_resource(vm.vm_id),
                facts={
                    "owner": vm.user_id,
                    "guest_image": vm.spec.guest_image,
                    "vcpus": vm.spec.vcpus,
                    "memory_bytes": vm.spec.memory_bytes,
                },
            )
            answer = await tx.answer(intent, vm)
            # A caller whose deadline ends during the commit has a VM all the same, and it needs its keeper.
            tx.follow_ups.append(functools.partial(self._begin, vm.vm_id))
        return answer

    def _begin(self, vm_id: VmId) -> None:
        self._failpoint("create.committed")
        self._follow(vm_id)

    def _guest_image(self, digest: str) -> str | None:
        """Return the digest of the image to boot, or None if it cannot be had; reading it is quicker than a thread."""
        try:
            wanted = digest or self._images.default_guest()
            return None if wanted is None else self._images.guest(wanted).digest
        except ImageError as error:
            _log.warning("vm.no_image", image=digest or "default", error=str(error))
            return None

    async def start(self, intent: Intent[Answer], vm_id: str) -> Answer:
        """Want the VM to run, at once. Raises VmNotFound, VmDeleting, VmQuarantined, NodeDraining, RequestIdReused."""
        answer = await self._wish(intent, vm_id, _start, audit.START_VM, starts=True)
        self._failpoint("start.wish_committed")
        return answer

    async def start_for_request(self, vm_id: str) -> None:
        """Want a VM to run that is stopped, as somebody asks for what is in it; one that may not stays stopped.

        Raises VmNotFound, NodeDraining.
        """
        async with self._store.transaction() as tx:
            vm = await found(tx, vm_id)
            if not starts_on_request(vm):
                return
            await self._admission.allow_start(tx)
            await tx.save_vm(_start(vm), vm)
            await tx.audit(audit.START_VM_FOR_REQUEST, resource=audit.vm_resource(vm_id))
        self._failpoint("start.wish_committed")

    async def stop(self, intent: Intent[Answer], vm_id: str) -> Answer:
        """Want the VM stopped. Raises VmNotFound, VmDeleting, VmQuarantined, RequestIdReused."""
        answer = await self._wish(intent, vm_id, _stop, audit.STOP_VM)
        self._failpoint("stop.wish_committed")
        return answer

    async def recycle(self, intent: Intent[Answer], vm_id: str) -> Answer:
        """Want the VM in a new epoch without its writable layers. Raises as `start`."""
        answer = await self._wish(intent, vm_id, _recycle, audit.RECYCLE_VM, starts=True)
        self._failpoint("recycle.wish_committed")
        return answer

    async def delete(self, intent: Intent[Answer], vm_id: str, *, force: bool) -> Answer:
        """Want the VM gone with its data. Raises VmNotFound, VmQuarantined (without `force`), RequestIdReused."""
        answer = await self._wish(
            intent, vm_id, lambda vm: _delete(vm, force=force), audit.DELETE_VM, facts={"force": force}
        )
        self._failpoint("delete.wish_committed")
        return answer

    async def _wish(
        self,
        intent: Intent[Answer],
        vm_id: str,
        change: Callable[[Vm], Vm],
        action: Action,
        *,
        starts: bool = False,
        facts: Facts = NO_FACTS,
    ) -> Answer:
        async with self._store.transaction() as tx:
            if (answer := await tx.answered(intent)) is not None:
                return answer
            vm = await found(tx, vm_id)
            wished = change(vm)
            if starts:
                await self._admission.allow_start(tx)
            vm = await tx.save_vm(wished, vm)
            await tx.audit(action, resource=audit.vm_resource(vm_id), facts=facts)
            return await tx.answer(intent, vm)


async def found(reading: Reading, vm_id: str) -> Vm:
    """Return the VM; VmNotFound if there is none."""
    vm = await reading.vm(vm_id)
    if vm is None:
        raise VmNotFound(vm_id)
    return vm


def starts_on_request(vm: Vm) -> bool:
    """Tell whether a request for what is in a VM is to start it."""
    is_stopped = vm.state is VmState.STOPPED and vm.desired is DesiredState.STOPPED
    return is_stopped and vm.spec.cold_start is ColdStart.ON_REQUEST


def _start(vm: Vm) -> Vm:
    return _try_at_once(replace(_ours(vm), desired=DesiredState.RUNNING))


def _recycle(vm: Vm) -> Vm:
    wished = replace(_ours(vm), desired=DesiredState.RUNNING, recycle_wished=vm.recycle_wished + 1)
    return _try_at_once(wished)


def _stop(vm: Vm) -> Vm:
    return replace(_ours(vm), desired=DesiredState.STOPPED)


def _delete(vm: Vm, *, force: bool) -> Vm:
    if vm.state is VmState.QUARANTINED and not force:
        raise VmQuarantined(vm.vm_id)
    return replace(vm, desired=DesiredState.DELETED, force_delete=vm.force_delete or force)


def _ours(vm: Vm) -> Vm:
    if vm.desired is DesiredState.DELETED:
        raise VmDeleting(vm.vm_id)
    if vm.state is VmState.QUARANTINED:
        raise VmQuarantined(vm.vm_id)
    return vm


def _try_at_once(vm: Vm) -> Vm:
    if vm.state not in _RESTARTABLE:
        return vm
    return replace(vm.move(VmState.PENDING), restart_count=0, next_try_time=None)


def _no_image(digest: str) -> ImageNotFound:
    if digest:
        return ImageNotFound(
            f"The node has no guest image {digest}; build or import it there, or leave the image empty."
        )
    return ImageNotFound("The node has no default guest image; build one there, or name an image that it has.")
