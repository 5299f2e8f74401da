"""The store, on each database: a change, its journal entry and its answer are one; nothing half is ever seen."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from cellmesh.mesh.errors import MeshError, RequestIdReused, ResumeTokenExpired, WatcherTooSlow
from cellmesh.mesh.watch import Bookmark, Change
from cellmesh.service.journal import Journal
from cellmesh.service.store import SchemaTooNew
from cellmesh.service.store.changes import ALL
from support.intents import intent
from support.notes import Note, Notes, Transaction, entry

pytestmark = pytest.mark.asyncio
SECONDS = 120


async def add(notes: Notes, *names: str) -> None:
    """Add notes, each in a transaction of its own, one after another."""
    for name in names:
        async with notes.transaction() as tx:
            await tx.add_named(name)


async def stored(notes: Notes) -> tuple[list[str], list[str]]:
    """Return the names of the notes, and those in the journal in its order."""
    async with notes.reading() as reading:
        return list(await reading.names()), [row["name"] for row in await reading.rows(after=0, limit=1000)]


async def test_an_error_leaves_neither_change_nor_entry_nor_notice(notes: Notes) -> None:
    """A transaction that fails after its writes leaves nothing and notifies nobody; the next one is whole."""

    async def fail() -> None:
        async with notes.transaction() as tx:
            await tx.add_named("a")
            assert await tx.note("a") == Note("a", "")
            raise RuntimeError("planted")

    with notes.changes.watched(ALL) as changed:
        with pytest.raises(RuntimeError, match="planted"):
            await fail()
        assert not changed.is_set()
    await add(notes, "b")
    assert await stored(notes) == (["b"], ["b"])
    assert notes.commits[-1:] == [frozenset({"b"})]


async def test_a_write_that_fails_with_the_commit_leaves_nothing(notes: Notes) -> None:
    """A statement that goes with the commit and fails there undoes all of its transaction."""
    await add(notes, "a")
    with pytest.raises(IntegrityError):
        await add(notes, "a")
    await add(notes, "b")
    assert await stored(notes) == (["a", "b"], ["a", "b"])


async def test_of_many_at_once_only_those_that_fail_are_undone(notes: Notes) -> None:
    """Transactions that share a commit fail each for itself: by an error, by a statement, or by being cancelled."""
    hangs: list[asyncio.Task[None]] = []

    async def one(number: int) -> None:
        async with notes.transaction() as tx:
            await tx.add_named(f"{number:03}")
            if number % 5 == 1:
                raise RuntimeError("planted")
            if number % 5 == 2:
                await tx.add_named(f"{number:03}")
            if number % 5 == 3:
                hangs[number // 5].cancel()
                await tx.note("it is cancelled here")

    async with asyncio.timeout(SECONDS):
        tasks = [asyncio.create_task(one(number)) for number in range(60)]
        hangs += tasks[3::5]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == ["NoneType", "RuntimeError", "IntegrityError", "CancelledError", "NoneType"] * 12
    kept = [f"{number:03}" for number in range(60) if number % 5 in (0, 4)]
    assert await stored(notes) == (kept, kept)


async def test_many_at_once_share_commits(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred transactions that wait behind one another take a few commits, and each is answered after its own."""
    commits = 0
    commit = notes._writer.commit

    def counted() -> asyncio.Future[None]:
        nonlocal commits
        commits += 1
        return commit()

    monkeypatch.setattr(notes._writer, "commit", counted)

    async def one(number: int) -> None:
        async with notes.transaction() as tx:
            await tx.add_named(str(number))
        assert frozenset({str(number)}) in notes.commits

    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(one(number))
    assert commits <= 10
    assert len((await stored(notes))[0]) == 100


async def test_one_alone_sees_in_memory_what_it_sees_in_the_tables(notes: Notes) -> None:
    """Whoever was before a transaction that is `alone` has been committed when it begins."""
    seen: list[tuple[int, int]] = []

    async def alone() -> None:
        async with notes.transaction(alone=True) as tx:
            seen.append((len(await tx.names()), len(notes.commits)))
            await tx.add_named(f"alone {len(seen)}")

    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
        for number in range(40):
            tasks.create_task(alone() if number % 4 == 3 else add(notes, str(number)))
    assert len(seen) == 10
    assert all(in_tables == in_memory for in_tables, in_memory in seen)


async def test_a_commit_is_taken_over_though_its_caller_gave_up(notes: Notes) -> None:
    """A caller whose time ends during the commit has committed, and what follows a commit follows this one."""
    followed, committing = asyncio.Event(), asyncio.Event()
    commit = notes._writer.commit

    def seen() -> asyncio.Future[None]:
        committing.set()
        return commit()

    async def change() -> None:
        async with notes.transaction() as tx:
            await tx.add_named("a")
            tx.follow_ups.append(followed.set)

    notes._writer.commit = seen  # type: ignore[method-assign]
    with notes.changes.watched("a") as changed:
        task = asyncio.create_task(change())
        await committing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(SECONDS):
            await followed.wait()
        assert changed.is_set()
    assert await stored(notes) == (["a"], ["a"])


async def test_a_request_is_answered_once(notes: Notes) -> None:
    """The same request gets its first answer again, another one under its id is refused, also after a new start."""
    first = intent()
    async with notes.transaction() as tx:
        assert await tx.answered(first) is None
        assert (await tx.answer(first, {"number": 7})).value == {"number": 7}
    async with notes.transaction() as tx:
        again = await tx.answered(first)
        assert again is not None
        assert again.value == {"number": 7}
        with pytest.raises(RequestIdReused):
            await tx.answered(replace(first, fingerprint=b"y"))
        assert await tx.answered(replace(first, method="Another")) is None


async def test_a_refusal_may_take_the_place_of_an_answer(notes: Notes) -> None:
    """What was answered and then had to be undone is refused to whoever repeats the request."""
    first = intent()
    async with notes.transaction() as tx:
        await tx.answer(first, 1)
    async with notes.transaction() as tx:
        await tx.refuse(first, RequestIdReused("planted"))
    async with notes.transaction() as tx:
        with pytest.raises(MeshError, match="planted") as refused:
            await tx.answered(first)
    assert refused.value.reason == "REQUEST_ID_REUSED"


async def test_answers_are_forgotten_after_their_time(notes: Notes) -> None:
    """An answer older than what is kept is forgotten, a fresh one is not."""
    first = intent()
    async with notes.transaction() as tx:
        await tx.answer(first, 1)
    for age, kept in ((timedelta(hours=1), True), (timedelta(hours=-1), False)):
        async with notes.transaction() as tx:
            await tx.prune(keep_entries=10, answers_before=tx.now - age)
        async with notes.transaction() as tx:
            assert (await tx.answered(first) is not None) is kept


async def test_watchers_get_each_entry_once_and_in_order(notes: Notes) -> None:
    """A relay under many concurrent writers leaves no entry out and publishes none twice."""
    journal = await Journal.opened(notes, entry)
    writers, each = 8, 10
    seen: list[int] = []
    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
        relay = tasks.create_task(journal.relay())
        for writer in range(writers):
            tasks.create_task(add(notes, *(f"{writer} {number}" for number in range(each))))
        async for change in journal.follow(0, lambda _: True):
            if not isinstance(change, Bookmark):
                seen.append(change.position)
            if len(seen) == writers * each:
                break
        relay.cancel()
    assert seen == list(range(1, writers * each + 1))


async def test_a_position_older_than_what_is_kept_is_refused(notes: Notes) -> None:
    """After pruning, a watch from before the oldest entry ends typed, and one from the edge goes on."""
    await add(notes, *"abcde")
    async with notes.transaction() as tx:
        await tx.prune(keep_entries=2, answers_before=tx.now)
    journal = await Journal.opened(notes, entry)
    assert await journal.oldest() == 4
    with pytest.raises(ResumeTokenExpired):
        await anext(journal.follow(2, lambda _: True))
    first = await anext(journal.follow(3, lambda _: True))
    assert first.position == 4
    await add(notes, "f")
    assert await journal.newest() == 6


async def test_a_watcher_hears_of_the_place_while_others_keep_the_journal_busy(notes: Notes) -> None:
    """A watcher of one name that is too slow is told so; it never gets entries that it does not want."""
    journal = await Journal.opened(notes, entry)
    async with asyncio.timeout(SECONDS):
        following = journal.follow(0, lambda found: found.name == "mine")
        assert isinstance(await anext(following), Bookmark)
        for position in range(1, 10_000):
            journal.hub.publish(Change(position=position, item=Note("other", "", position)))
        with pytest.raises(WatcherTooSlow):
            await anext(following)


async def test_the_secret_of_tokens_outlives_a_restart(location: Path | str) -> None:
    """It is made once, and is of 32 bytes."""
    keys = []
    for _ in range(2):
        async with Notes.opened(location) as notes, notes.reading() as reading:
            keys.append(await reading.token_key())
    assert keys[0] == keys[1]
    assert len(keys[0]) == 32


async def test_maintenance_goes_on_beside_transactions(notes: Notes) -> None:
    """It waits for what is open, and what comes meanwhile waits for it."""
    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(add(notes, str(number)))
            if number % 5 == 0:
                tasks.create_task(notes.maintain())
    assert len((await stored(notes))[0]) == 20


async def test_a_database_of_a_later_version_is_left_alone(location: Path | str) -> None:
    """A service that is too old says which version it found, and changes nothing."""
    async with Notes.opened(location) as notes:
        await add(notes, "a")
        await notes._writer.run(lambda connection: _set_version(connection, 999))
        await notes._writer.commit()
    with pytest.raises(SchemaTooNew, match="999"):
        async with Notes.opened(location):
            pytest.fail("it was opened")


def _set_version(connection: Connection, version: int) -> None:
    if connection.dialect.name == "sqlite":
        connection.execute(text(f"PRAGMA user_version = {version}"))
    else:
        connection.execute(text("UPDATE schema_version SET version = :version"), {"version": version})


async def test_readers_see_one_moment(notes: Notes) -> None:
    """What is committed meanwhile is not seen by a reading that has begun to look."""
    await add(notes, "a")
    async with notes.reading() as reading:
        assert list(await reading.names()) == ["a"]
        await add(notes, "b")
        assert list(await reading.names()) == ["a"]
    async with notes.reading() as reading:
        assert list(await reading.names()) == ["a", "b"]


async def test_who_is_answered_sees_what_others_committed(notes: Notes) -> None:
    """Each transaction reads what those before it wrote, whether or not that is committed yet."""

    async def count(tx: Transaction) -> int:
        return len(await tx.names())

    async def one(number: int) -> int:
        async with notes.transaction() as tx:
            await tx.add_named(f"{number:03}")
            return await count(tx)

    async with asyncio.timeout(SECONDS):
        assert await asyncio.gather(*(one(number) for number in range(50))) == list(range(1, 51))


async def test_cancelling_at_any_moment_hurts_nobody_else(notes: Notes) -> None:
    """Of hundreds of transactions many are cancelled wherever they are: the others are stored, whole."""
    chosen = random.Random(11)  # noqa: S311  # it decides about moments only

    async def one(number: int) -> None:
        async with notes.transaction(alone=number % 17 == 0) as tx:
            await tx.add_named(f"{number:03}")
            if number % 3:
                await tx.note(f"{number:03}")

    async with asyncio.timeout(SECONDS):
        tasks = [asyncio.create_task(one(number)) for number in range(300)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(chosen.random() / 500)
            open_ = [task for task in tasks if not task.done()]
            for task in open_[: chosen.randrange(3)]:
                task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {type(None), asyncio.CancelledError}
    done = {f"{number:03}" for number, outcome in enumerate(outcomes) if outcome is None}
    names, entries = await stored(notes)
    assert done <= set(names)
    assert sorted(entries) == names
