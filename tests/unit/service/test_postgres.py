"""What is PostgreSQL's own: several processes on one database, and a server that goes and comes back."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from cellmesh.mesh.watch import Bookmark
from cellmesh.service.journal import Journal
from cellmesh.service.store import StoreUnavailable
from support.notes import Notes, entry
from support.postgres import PostgresServer

pytestmark = pytest.mark.asyncio
SECONDS = 120
OTHERS = 1000


async def followed(location: str, *, locked: bool) -> list[str]:
    """Return what a follower saw of a slow transaction and of a thousand that others began after it.

    Without the lock transactions commit in another order than they took their sequences in, and the follower's query,
    `sequence > last seen`, is the naive one.
    """
    async with AsyncExitStack() as stack:
        slow, quick, follower = [await stack.enter_async_context(Notes.opened(location)) for _ in range(3)]
        if not locked:
            for store in (slow, quick):
                store._writer._begin = []
        follower.poll = 0.01
        journal = await Journal.opened(follower, entry)
        relay = asyncio.create_task(journal.relay())
        seen: list[str] = []

        async def follow() -> None:
            async for change in journal.follow(0, lambda _: True):
                if not isinstance(change, Bookmark):
                    seen.append(change.item.name)
                if change.position == last:
                    return

        async def add(name: str) -> None:
            async with quick.transaction() as tx:
                await tx.add_named(name)

        last = OTHERS + 1
        following = asyncio.create_task(follow())
        async with slow.transaction() as tx:
            await tx.add_named("slow")
            await tx.names()
            others = [asyncio.create_task(add(f"quick {number}")) for number in range(OTHERS)]
            if not locked:
                await asyncio.gather(*others)
                await following
        await asyncio.gather(*others)
        if locked:
            await following
        else:
            # It has had time to look again, and has nothing left to see.
            await asyncio.sleep(0.2)
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)
        return seen


async def test_a_follower_skips_no_entry(postgres: PostgresServer) -> None:
    """A transaction that is open while a thousand others want to commit is not skipped."""
    async with asyncio.timeout(SECONDS):
        seen = await followed(await postgres.create_database(), locked=True)
    assert seen[0] == "slow"
    assert len(seen) == len(set(seen)) == OTHERS + 1


async def test_without_the_lock_a_follower_skips(postgres: PostgresServer) -> None:
    """The control: the naive way, the same follower leaves the slow transaction's entry out."""
    async with asyncio.timeout(SECONDS):
        seen = await followed(await postgres.create_database(), locked=False)
    assert "slow" not in seen
    assert len(seen) == OTHERS


async def test_a_server_that_goes_is_unavailable_and_then_used_again(postgres: PostgresServer) -> None:
    """While it is away every transaction and reading gets a typed error; afterwards all goes on by itself."""

    async def add(name: str) -> None:
        async with notes.transaction() as tx:
            await tx.add_named(name)

    async with Notes.opened(await postgres.create_database()) as notes:
        await add("before")
        postgres.crash()
        try:
            outcomes = await asyncio.gather(*(add(str(number)) for number in range(5)), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 5
            with pytest.raises(StoreUnavailable):
                async with notes.reading() as reading:
                    await reading.names()
        finally:
            postgres.start()
        async with asyncio.timeout(SECONDS):
            await add("after")
            async with notes.reading() as reading:
                assert list(await reading.names()) == ["after", "before"]


async def test_no_server_is_a_typed_error() -> None:
    """A service whose database is not there says so when it starts."""
    with pytest.raises(StoreUnavailable, match="Start it"):
        async with Notes.opened("postgresql://cellmesh@/nowhere?host=/nonexistent"):
            pytest.fail("it was opened")
