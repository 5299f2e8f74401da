"""The store of the node: what comes back of a VM, what the journal says of it, what memory holds of it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from cellmesh.hypervisor.domain.container import ContainerState, ContainerStatus
from cellmesh.hypervisor.domain.event import ContainerOomKilled, ContainerStateChanged, VmStateChanged
from cellmesh.hypervisor.domain.vm import DesiredState, Reason, VmState
from cellmesh.hypervisor.store import Store
from cellmesh.service.store.changes import ALL
from support.vms import make_container, make_vm

pytestmark = pytest.mark.asyncio


async def test_a_vm_comes_back_as_it_was_stored(store: Store) -> None:
    """Every field of a VM and of a container survives the way into the database and back."""
    vm = make_vm(epoch=7, reason=Reason.VMM_EXITED, message="it died", restart_count=3, recycle_wished=2, vmm_pid=99)
    status = ContainerStatus(state=ContainerState.BACKOFF, exit_code=137, oom_kills=2, reason="OOM_KILLED")
    container = make_container(vm.vm_id, epoch=7, status=status)
    async with store.transaction() as tx:
        await tx.add_vm(vm)
        stored = await tx.save_container(container, None)
    async with store.reading() as reading:
        assert await reading.vm(vm.vm_id) == vm
        assert await reading.vm_of_user(vm.user_id) == vm
        assert await reading.containers(vm.vm_id) == [stored]


async def test_an_error_leaves_neither_state_nor_event_nor_news(store: Store) -> None:
    """A transaction that fails after its writes leaves nothing, and wakes nobody."""
    vm = make_vm()

    async def fail() -> None:
        async with store.transaction() as tx:
            await tx.add_vm(vm)
            raise RuntimeError("planted")

    with store.changes.watched(ALL) as changed:
        with pytest.raises(RuntimeError, match="planted"):
            await fail()
        assert not changed.is_set()
    async with store.reading() as reading:
        assert await reading.vm(vm.vm_id) is None
        assert await reading.entries(after=0, limit=10) == []
    assert store.mirror.vm(vm.vm_id) is None


async def test_a_commit_is_told_even_if_who_made_it_gave_up(store: Store) -> None:
    """A transaction whose caller's time ends while it commits is stored, mirrored and followed up like any other."""
    vm, committing, go, followed = make_vm(), asyncio.Event(), threading.Event(), asyncio.Event()

    async def change() -> None:
        async with store.transaction() as tx:
            await tx.add_vm(vm)
            tx.follow_ups.append(followed.set)
            # What its thread does before it gets to the commit.
            held.append(store._writer.submit(lambda _: go.wait()))
            committing.set()

    held: list[asyncio.Future[bool]] = []
    with store.changes.watched(vm.vm_id) as changed:
        task = asyncio.create_task(change())
        await committing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert store.mirror.vm(vm.vm_id) is None
        go.set()
        async with asyncio.timeout(30):
            await followed.wait()
        assert changed.is_set()
    assert store.mirror.vm(vm.vm_id) == vm
    async with store.reading() as reading:
        assert await reading.vm(vm.vm_id) == vm


async def test_each_change_of_state_has_its_event(store: Store) -> None:
    """A change of state is one event, a change of wish is a revision without an event, both in order."""
    vm = make_vm()
    async with store.transaction() as tx:
        await tx.add_vm(vm)
    async with store.transaction() as tx:
        wished = await tx.save_vm(replace(vm, desired=DesiredState.STOPPED), vm)
    async with store.transaction() as tx:
        await tx.save_vm(wished.move(VmState.STOPPED), wished)
    async with store.reading() as reading:
        entries = await reading.entries(after=0, limit=10)
    assert [entry.vm.revision for entry in entries if entry.vm is not None] == [1, 2, 3]
    assert [entry.payload for entry in entries] == [
        VmStateChanged(origin=None, target=VmState.PENDING, reason="", message=""),
        None,
        VmStateChanged(origin=VmState.PENDING, target=VmState.STOPPED, reason="", message=""),
    ]


async def test_a_container_tells_of_state_and_of_each_kill(store: Store) -> None:
    """What changed of a container is told by one event each, and a change of nothing by none."""
    vm = make_vm()
    new = make_container(vm.vm_id, epoch=1)
    killed = ContainerStatus(state=ContainerState.BACKOFF, exit_code=137, oom_kills=1, reason="OOM_KILLED")
    async with store.transaction() as tx:
        await tx.add_vm(vm)
        stored = await tx.save_container(new, None)
        stored = await tx.save_container(replace(stored, status=killed), stored)
        await tx.save_container(stored, stored)
    async with store.reading() as reading:
        payloads = [entry.payload for entry in await reading.entries(after=1, limit=10)]
    assert [type(payload) for payload in payloads] == [ContainerStateChanged, ContainerStateChanged, ContainerOomKilled]


async def test_the_mirror_shows_what_was_committed(store: Store, tmp_path: Path) -> None:
    """After changes and deletions the mirror holds what the tables hold, also after the database is opened again."""
    kept, gone = make_vm(), make_vm()
    async with store.transaction() as tx:
        await tx.add_vm(kept)
        await tx.add_vm(gone)
        await tx.save_container(make_container(kept.vm_id, "b"), None)
        await tx.save_container(make_container(kept.vm_id, "a", ingress_slot=1), None)
        deleting = await tx.save_vm(gone.move(VmState.DELETING), gone)
        await tx.save_vm(deleting.move(VmState.DELETED), deleting)
    async with store.reading() as reading:
        for vm_id in (kept.vm_id, gone.vm_id):
            assert store.mirror.vm(vm_id) == await reading.vm(vm_id)
            assert list(store.mirror.containers(vm_id)) == list(await reading.containers(vm_id))
    async with Store.opened(tmp_path / "hypervisor.db") as again:
        assert again.mirror.vm(kept.vm_id) == kept
        assert [container.name for container in again.mirror.containers(kept.vm_id)] == ["a", "b"]
