"""A watch tells everything once and in order, or says that it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import pytest

from cellmesh.mesh.errors import InvalidResumeToken, ResumeTokenExpired, WatcherTooSlow
from cellmesh.mesh.tokens import TokenSigner
from cellmesh.mesh.watch import Bookmark, Change, Hub, ResumeTokens, follow

Told = Change[str] | Bookmark


class MemoryHistory:
    """Changes 1 to n, the first of them forgotten."""

    def __init__(self, count: int, *, forgotten: int = 0) -> None:
        self.changes = [_change(n) for n in range(1, count + 1)][forgotten:]
        self.next = count + 1

    async def oldest(self) -> int:
        """Return the oldest position kept."""
        return self.changes[0].position if self.changes else self.next

    async def after(self, position: int, limit: int) -> Sequence[Change[str]]:
        """Return what came after a position."""
        return [change for change in self.changes if change.position > position][:limit]


def _change(position: int) -> Change[str]:
    return Change(position=position, item=f"c{position}")


async def _take(told: AsyncIterator[Told], count: int) -> list[Told]:
    return [await anext(told) for _ in range(count)]


@pytest.mark.asyncio
async def test_past_then_bookmark_then_present() -> None:
    """What is kept comes first, then the word that it is over, then what happens, each once."""
    hub, history = Hub[str](), MemoryHistory(600)
    async with aclosing(follow(hub, history, 2)) as told:
        past = await _take(told, 598)
        assert past == [_change(n) for n in range(3, 601)]
        assert await anext(told) == Bookmark(position=600, caught_up=True)
        # Told already by the history: a change may be in both.
        for position in (599, 600, 601):
            hub.publish(_change(position))
        assert await anext(told) == _change(601)
    assert len(hub) == 0


@pytest.mark.asyncio
async def test_nothing_is_lost_between_past_and_present() -> None:
    """A change that is published while the past is being read is told, once."""
    hub, history = Hub[str](), MemoryHistory(3)
    async with aclosing(follow(hub, history, 0)) as told:
        first = await anext(told)
        hub.publish(_change(4))
        rest = await _take(told, 4)
    assert [first, *rest] == [_change(1), _change(2), _change(3), Bookmark(position=3, caught_up=True), _change(4)]


@pytest.mark.asyncio
async def test_silence_gives_bookmarks() -> None:
    """A watch on which nothing happens still says how far it is."""
    async with aclosing(follow(Hub[str](), MemoryHistory(5), 5, heartbeat=0.01)) as told:
        assert await _take(told, 3) == [Bookmark(position=5, caught_up=True)] + [Bookmark(position=5)] * 2


@pytest.mark.asyncio
async def test_slow_watcher_is_told_and_others_are_not_held_up() -> None:
    """Who does not read loses its watch, never a change in silence; publishing goes on for the rest."""
    hub, history = Hub[str](queue_size=10), MemoryHistory(0)
    async with aclosing(follow(hub, history, 0)) as slow, aclosing(follow(hub, history, 0)) as quick:
        await anext(slow)
        await anext(quick)
        for position in range(1, 101):
            hub.publish(_change(position))
            assert await anext(quick) == _change(position)
        with pytest.raises(WatcherTooSlow):
            await anext(slow)


@pytest.mark.asyncio
async def test_forgotten_past_is_said() -> None:
    """A token from before what is kept ends with an error; one at its very edge does not."""
    history = MemoryHistory(10, forgotten=4)
    with pytest.raises(ResumeTokenExpired):
        await anext(follow(Hub[str](), history, 3))
    async with aclosing(follow(Hub[str](), history, 4)) as told:
        assert await anext(told) == _change(5)


@pytest.mark.asyncio
async def test_watch_of_an_empty_history_starts() -> None:
    """Before anything has happened a watch waits, and after everything was forgotten a current token still holds."""
    for history, position in ((MemoryHistory(0), 0), (MemoryHistory(7, forgotten=7), 7)):
        async with aclosing(follow(Hub[str](), history, position)) as told:
            assert await anext(told) == Bookmark(position=position, caught_up=True)
    with pytest.raises(ResumeTokenExpired):
        await anext(follow(Hub[str](), MemoryHistory(7, forgotten=7), 6))


def test_resume_tokens_are_ours_alone() -> None:
    """A token resumes its own watch and filter, fits the contract's 64 bytes, and cannot be made up or bent."""
    signer = TokenSigner(b"k" * 32)
    tokens = ResumeTokens(signer, "vms")
    token = tokens.encode(42, "vm-1")
    assert tokens.decode(token, "vm-1") == 42
    assert len(token) <= 64
    bent = token[:-1] + bytes([token[-1] ^ 1])
    for other, query, wrong in (
        (tokens, "vm-2", token),
        (ResumeTokens(signer, "events"), "vm-1", token),
        (ResumeTokens(TokenSigner(b"x" * 32), "vms"), "vm-1", token),
        (tokens, "vm-1", bent),
        (tokens, "vm-1", b""),
        (tokens, "vm-1", b"\x01" * 64),
    ):
        with pytest.raises(InvalidResumeToken):
            other.decode(wrong, query)


@pytest.mark.asyncio
async def test_cancelled_watcher_leaves_nothing() -> None:
    """A watcher that goes away while it waits is no longer published to."""
    hub, watching = Hub[str](), asyncio.Event()

    async def watch() -> None:
        async with aclosing(follow(hub, MemoryHistory(0), 0)) as told:
            async for _ in told:
                watching.set()

    watcher = asyncio.ensure_future(watch())
    await watching.wait()
    assert len(hub) == 1
    watcher.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watcher
    assert len(hub) == 0
