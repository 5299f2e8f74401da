"""The store: one transaction holds a change, its event and its answer; nothing half is ever seen."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from cellmesh.hypervisor.domain.container import ContainerState, ContainerStatus
from cellmesh.hypervisor.domain.event import ContainerOomKilled, ContainerStateChanged, VmStateChanged
from cellmesh.hypervisor.domain.vm import DesiredState, Reason, VmState
from cellmesh.hypervisor.lifecycle.log import Log
from cellmesh.hypervisor.store import Intent, Store, lock
from cellmesh.hypervisor.store.changes import ALL
from cellmesh.hypervisor.store.lock import StateInUse, StateLock
from cellmesh.hypervisor.store.schema import SchemaTooNew
from cellmesh.mesh.errors import RequestIdReused, ResumeTokenExpired
from cellmesh.mesh.watch import Bookmark, follow
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


async def test_a_write_that_fails_with_the_commit_leaves_nothing(store: Store) -> None:
    """A statement that goes with the commit and fails there undoes all, and the next transaction finds none open."""
    vm, other = make_vm(), make_vm()
    nothing: str = None  # type: ignore[assignment]  # an answer that cannot be stored

    async def fail() -> None:
        async with store.transaction() as tx:
            await tx.add_vm(vm)
            await tx.put_answer(Intent(method="m", request_id="r", fingerprint=b"f"), nothing)

    with pytest.raises(IntegrityError):
        await fail()
    assert store.mirror.vm(vm.vm_id) is None
    async with store.transaction() as tx:
        await tx.add_vm(other)
    async with store.reading() as reading:
        assert await reading.vm(vm.vm_id) is None
        assert await reading.vm(other.vm_id) == other


async def test_a_commit_is_told_even_if_who_made_it_gave_up(store: Store) -> None:
    """A transaction whose caller's time ends while it commits is stored, mirrored and followed up like any other."""
    vm, committing, go, followed = make_vm(), asyncio.Event(), threading.Event(), asyncio.Event()

    async def change() -> None:
        async with store.transaction() as tx:
            await tx.add_vm(vm)
            tx.follow_ups.append(followed.set)
            # What its thread does before it gets to the commit.
            held.append(store._writer._asked(lambda _: go.wait()))
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


async def test_a_request_id_is_for_one_request(store: Store) -> None:
    """The same request gets its first answer, another one under its id is refused."""
    intent = Intent(method="m", request_id="r", fingerprint=b"one")
    async with store.transaction() as tx:
        assert await tx.answer(intent) is None
        await tx.put_answer(intent, "first")
    async with store.reading() as reading:
        assert await reading.answer(intent) == "first"
        with pytest.raises(RequestIdReused):
            await reading.answer(replace(intent, fingerprint=b"two"))


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


async def test_watchers_hear_every_commit_once_and_in_order(store: Store) -> None:
    """A relay under many concurrent writers leaves no entry out and tells none twice."""
    log = await Log.opened(store)
    writers, each = 8, 10

    async def write() -> None:
        for _ in range(each):
            async with store.transaction() as tx:
                await tx.add_vm(make_vm())

    heard: list[int] = []
    async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        relay = tasks.create_task(log.relay())
        for _ in range(writers):
            tasks.create_task(write())
        async for change in follow(log.hub, log, 0):
            if not isinstance(change, Bookmark):
                heard.append(change.position)
            if len(heard) == writers * each:
                break
        relay.cancel()
    assert heard == list(range(1, writers * each + 1))


async def test_a_token_older_than_what_is_kept_is_refused(store: Store) -> None:
    """After pruning, a watch from before the oldest entry ends typed, and one from the edge goes on."""
    async with store.transaction() as tx:
        for _ in range(5):
            await tx.add_vm(make_vm())
    async with store.transaction() as tx:
        await tx.prune(keep_entries=2, answers_before=tx.now)
    log = await Log.opened(store)
    with pytest.raises(ResumeTokenExpired):
        await anext(follow(log.hub, log, 2))
    first = await anext(follow(log.hub, log, 3))
    assert first.position == 4


async def test_answers_are_forgotten_after_their_time(store: Store) -> None:
    """An answer older than what is kept is forgotten, a fresh one is not."""
    intent = Intent(method="m", request_id="r", fingerprint=b"x")
    async with store.transaction() as tx:
        await tx.put_answer(intent, "kept")
    for age, expected in ((timedelta(hours=1), "kept"), (timedelta(hours=-1), None)):
        async with store.transaction() as tx:
            await tx.prune(keep_entries=10, answers_before=tx.now - age)
            assert await tx.answer(intent) == expected


async def test_upkeep_empties_the_write_ahead_log(store: Store, tmp_path: Path) -> None:
    """Upkeep moves the log of SQLite into its database, as nothing else does."""
    async with store.transaction() as tx:
        await tx.add_vm(make_vm())
    log = tmp_path / "hypervisor.db-wal"
    assert log.stat().st_size > 0
    await store.maintain()
    assert log.stat().st_size == 0


async def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    """A hypervisor that is too old says so and does not touch the database."""
    path = tmp_path / "hypervisor.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SchemaTooNew, match="999"):
        async with Store.opened(path):
            pytest.fail("it was opened")
    assert path.read_bytes() == before


async def test_a_holder_that_dies_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a killed hypervisor for a moment, such as a child before its exec, keeps no other out."""
    monkeypatch.setattr(lock, "_PATIENCE", 30.0)
    copy = os.open(tmp_path / "hypervisor.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(copy, fcntl.LOCK_EX)

    def hold() -> str:
        with StateLock(tmp_path):
            return (tmp_path / "hypervisor.lock").read_text()

    asyncio.get_running_loop().call_later(0.1, os.close, copy)
    assert await asyncio.to_thread(hold) == f"{os.getpid()}\n"


async def test_one_state_directory_has_one_holder(tmp_path: Path) -> None:
    """A second holder is refused with the first one's pid, and may come once the first is gone."""
    with StateLock(tmp_path), pytest.raises(StateInUse, match=r"pid \d+"), StateLock(tmp_path):
        pytest.fail("two hold it")
    with StateLock(tmp_path):
        assert (tmp_path / "hypervisor.lock").exists()
