"""Mutations that may be sent twice: the same `request_id` gets the first answer again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from cellmesh.mesh.errors import RequestIdReused

Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What a caller wants done once."""

    method: str
    """The RPC, as in `/pkg.Service/Method`."""
    request_id: str
    """Chosen by the caller for this intent."""
    request_hash: bytes
    """SHA-256 of the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The answer an intent got."""

    request_hash: bytes
    """SHA-256 of the request it answered."""
    answer: bytes
    """The answer, serialized."""


class IdempotencyStore(Protocol):
    """Keeps answers for as long as callers may retry."""

    async def get(self, method: str, request_id: str) -> Recorded | None:
        """Return the answer of an intent, or None."""

    async def put(self, intent: Intent, answer: bytes) -> None:
        """Keep an answer; one that is there already stays.

        Called after the mutation: a store that shares the mutation's transaction has put it there before.
        """


class Idempotency:
    """Runs each intent once and gives its answer to everyone who asks with the same `request_id`."""

    def __init__(self, store: IdempotencyStore) -> None:
        self._store = store
        self._running: dict[tuple[str, str], _Turn] = {}

    async def once(
        self, method: str, request: Message, answer_type: type[Answer], run: Callable[[Intent], Awaitable[Answer]]
    ) -> Answer:
        """Return the first answer to this request's `request_id`, from `run` if there is none yet.

        Raises RequestIdReused if the id came with another request, ValueError if the request has none. An error of
        `run` is not an answer: the next try runs again.
        """
        intent = intent_of(method, request)
        async with self._turn(method, intent.request_id):
            recorded = await self._store.get(method, intent.request_id)
            if recorded is None:
                answer = await run(intent)
                await self._store.put(intent, answer.SerializeToString(deterministic=True))
                return answer
        if recorded.request_hash != intent.request_hash:
            raise RequestIdReused(
                "This request_id was used for another request. Choose a new one for each intent.",
                metadata={"request_id": intent.request_id},
            )
        return answer_type.FromString(recorded.answer)

    @asynccontextmanager
    async def _turn(self, method: str, request_id: str) -> AsyncIterator[None]:
        """Let one of several at once in; the others find its answer, or run themselves if it had none."""
        key = (method, request_id)
        turn = self._running.setdefault(key, _Turn(lock=asyncio.Lock()))
        turn.waiting += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                del self._running[key]


@dataclass(slots=True, kw_only=True)
class _Turn:
    lock: asyncio.Lock
    waiting: int = 0


def intent_of(method: str, request: Message) -> Intent:
    """Return the intent of a request; raise ValueError if it has no `request_id`."""
    request_id = getattr(request, "request_id", "")
    if not request_id:
        raise ValueError(f"{request.DESCRIPTOR.full_name} has no request_id")
    digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    return Intent(method=method, request_id=request_id, request_hash=digest)
