"""Watches: a stream of changes that can be resumed, never loses one in silence, and never waits for a slow reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cellmesh.mesh.errors import InvalidResumeToken, ResumeTokenExpired, WatcherTooSlow
from cellmesh.mesh.tokens import InvalidToken, TokenSigner

T = TypeVar("T")

HEARTBEAT = 10.0
"""Seconds of silence before a bookmark; the contracts promise one every 15."""
_PAGE = 256
_POSITION_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(Generic[T]):
    """Something that happened."""

    position: int
    """Where in the history; grows with every change of any kind, from 1."""
    item: T
    """What happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bookmark:
    """Nothing happened up to here that was not told."""

    position: int
    """Where in the history."""
    caught_up: bool = False
    """True once a stream: what had happened before it began has been told."""


class History(Protocol[T]):
    """The changes that are kept."""

    async def oldest(self) -> int:
        """Return the position of the oldest change kept, or where the next one will be if there is none."""

    async def after(self, position: int, limit: int) -> Sequence[Change[T]]:
        """Return at most `limit` changes after a position, oldest first."""


class Hub(Generic[T]):
    """Tells subscribers of changes as they happen. Of one event loop; publishing never waits."""

    def __init__(self, *, queue_size: int = 256) -> None:
        self._queue_size = queue_size
        self._subscriptions: set[Subscription[T]] = set()

    def publish(self, change: Change[T]) -> None:
        """Tell every subscriber of a change that is stored; call in the order of positions."""
        for subscription in self._subscriptions:
            subscription.offer(change)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription[T]]:
        """Receive the changes published from now on."""
        subscription: Subscription[T] = Subscription(self._queue_size)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def __len__(self) -> int:
        return len(self._subscriptions)


class Subscription(Generic[T]):
    """The changes one subscriber has not taken yet: a bounded number of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._changes: deque[Change[T]] = deque()
        self._arrived = asyncio.Event()
        self._overrun = False

    def offer(self, change: Change[T]) -> None:
        """Add a change; with no room left the subscriber is told it was too slow, and nothing more is kept."""
        if self._overrun:
            return
        if len(self._changes) >= self._size:
            self._overrun = True
            self._changes.clear()
        else:
            self._changes.append(change)
        self._arrived.set()

    async def take(self) -> Change[T]:
        """Return the next change, waiting for it; raise WatcherTooSlow if one was lost."""
        while not self._changes and not self._overrun:
            self._arrived.clear()
            await self._arrived.wait()
        if self._overrun:
            raise WatcherTooSlow("Changes came faster than they were read. Resume with the last resume token.")
        return self._changes.popleft()


async def follow(
    hub: Hub[T], history: History[T], position: int, *, heartbeat: float = HEARTBEAT
) -> AsyncGenerator[Change[T] | Bookmark, None]:
    """Yield each change after `position` once, in order; a bookmark when those from before are told, then on silence.

    Raises ResumeTokenExpired if changes after `position` are no longer kept, WatcherTooSlow if the reader falls behind.
    """
    # Subscribed first: what happens while history is read is in one or in both, and told once by its position.
    with hub.subscribe() as subscription:
        if position + 1 < await history.oldest():
            raise ResumeTokenExpired(
                "What came after this token is no longer kept. List again, then watch without one."
            )
        while changes := await history.after(position, _PAGE):
            for change in changes:
                position = change.position
                yield change
        yield Bookmark(position=position, caught_up=True)
        while True:
            try:
                async with asyncio.timeout(heartbeat):
                    change = await subscription.take()
            except TimeoutError:
                yield Bookmark(position=position)
                continue
            if change.position > position:
                position = change.position
                yield change


class ResumeTokens:
    """Makes and reads the resume tokens of one kind of watch."""

    def __init__(self, signer: TokenSigner, watch: str) -> None:
        self._signer = signer
        self._watch = watch.encode()

    def encode(self, position: int, query: str = "") -> bytes:
        """Return the 25 bytes that resume a watch for `query` after `position`."""
        return self._signer.sign(position.to_bytes(_POSITION_BYTES, "big"), self._purpose(query))

    def decode(self, token: bytes, query: str = "") -> int:
        """Return the position; raise InvalidResumeToken if the token is of another watch or query, or not ours."""
        try:
            payload = self._signer.verify(token, self._purpose(query))
        except InvalidToken:
            raise InvalidResumeToken(
                "The resume token is not of this watch. Start again without a token, and keep the filters as they are."
            ) from None
        return int.from_bytes(payload, "big")

    def _purpose(self, query: str) -> bytes:
        return b"resume:" + self._watch + b":" + query.encode()
