"""One call to a downstream: deadline, breaker, retries, errors, checked answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message

from cellmesh.mesh import deadline, on_behalf, retry, status
from cellmesh.mesh.breaker import Breaker
from cellmesh.mesh.errors import DeadlineExceeded, DownstreamUnavailable, InvalidAnswer, MeshError
from cellmesh.mesh.policy import MethodPolicy
from cellmesh.mesh.validation import check_answer
from cellmesh.mesh.wire import Undecodable

Metadata = Sequence[tuple[str, str | bytes]]
OpenCall = Callable[[], Awaitable[Callable[..., Any]]]
"""Returns gRPC's own callable of a method, on the connection that is current."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Downstream:
    """Who is called, and how it has been doing."""

    name: str
    """For messages and logs; not a secret."""
    breaker: Breaker
    """Its breaker."""
    budget: retry.RetryBudget = field(default_factory=retry.RetryBudget)
    """The retries it may still get."""
    hostile: bool = False
    """True if its answers are to be checked against the contract."""
    audience: str = ""
    """Its SPIFFE id, to which user tokens for it may go; empty if none may."""
    named_user: str = ""
    """The user that an operator acts for in calls to it; empty if none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One RPC of one downstream."""

    path: str
    """As in `/pkg.Service/Method`."""
    policy: MethodPolicy
    """Its policy."""
    downstream: Downstream
    """Who serves it."""
    open_call: OpenCall
    """How to call it."""

    def ends(self, timeout: float | None) -> float:
        """Return when a call made now with this timeout ends, in `time.monotonic` seconds."""
        seconds = self.policy.seconds(timeout)
        inbound = deadline.remaining()
        return time.monotonic() + (seconds if inbound is None else min(seconds, inbound))

    def left(self, ends: float) -> float:
        """Return the seconds until `ends`; raise DeadlineExceeded if there are none."""
        left = ends - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"No time was left to call {self.path}. Allow more time.")
        return left

    def checked(self, answer: Any) -> Any:
        """Return an answer; raise InvalidAnswer if it is no message, or comes from a stranger and breaks a rule."""
        if isinstance(answer, Undecodable):
            raise InvalidAnswer(f"{self.downstream.name} broke the contract: {self.path}: {answer.detail}.")
        if self.downstream.hostile and isinstance(answer, Message):
            check_answer(answer, self.downstream.name)
        return answer

    def metadata(self, given: Metadata) -> Metadata:
        """Return the metadata of a call made now, with the user that it acts for."""
        if any(key == on_behalf.TOKEN_KEY for key, _ in given):
            raise ValueError("a user token is passed on with acting_for, which knows for whom it is")
        downstream = self.downstream
        user = on_behalf.outbound(self.policy, audience=downstream.audience, named_user=downstream.named_user)
        return (*given, *user)

    async def pause(self, error: MeshError, *, attempt: int, ends: float) -> None:
        """Wait before the try after number `attempt`; raise `error` if there is to be none."""
        wait = retry.delay(
            error,
            attempt=attempt,
            policy=self.policy,
            left=ends - time.monotonic(),
            budget=self.downstream.budget,
        )
        if wait is None:
            raise error
        await asyncio.sleep(wait)


def _never() -> bool:
    return False


@contextmanager
def _told_if_hung_up(is_cancelled: Callable[[], bool] = _never) -> Iterator[None]:
    """Raise DownstreamUnavailable for a call inside whose channel was closed here, by somebody else.

    gRPC says that with CancelledError as well, to a task that nobody has cancelled and that is to go on.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling() or is_cancelled():
            raise
        raise DownstreamUnavailable("Its connection was closed while it was asked. Try again.") from None


@contextmanager
def _heeding_cancellation() -> Iterator[None]:
    """Raise CancelledError at the end if this task was cancelled inside: gRPC swallows that as a call begins or ends.

    It waits for such steps in tasks of its own; these are cancelled in our place, and end as if nothing had been.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


class UnaryCallable:
    """Calls an RPC that gives one answer."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def __call__(
        self, request: Any, *, timeout: float | None = None, metadata: Metadata = (), **_: Any
    ) -> Coroutine[Any, Any, Any]:
        """Return the answer when awaited; raise MeshError. `timeout` is in seconds and cut to the contract's."""
        return self._hearing(request, timeout, metadata)

    async def _hearing(self, request: Any, timeout: float | None, metadata: Metadata) -> Any:  # noqa: ASYNC109
        with _told_if_hung_up():
            return await self._call(request, timeout, metadata)

    async def _call(self, request: Any, timeout: float | None, metadata: Metadata) -> Any:  # noqa: ASYNC109
        method = self._method
        ends = method.ends(timeout)
        repeatable = retry.may_retry(method.policy, request)
        method.downstream.budget.earn(method.policy.retry_percent)
        metadata = method.metadata(metadata)
        attempt = 1
        while True:
            try:
                return await self._attempt(request, ends, metadata)
            except MeshError as error:
                if not repeatable:
                    raise
                await method.pause(error, attempt=attempt, ends=ends)
            attempt += 1

    async def _attempt(self, request: Any, ends: float, metadata: Metadata) -> Any:
        method = self._method
        call = await method.open_call()
        left = method.left(ends)
        with method.downstream.breaker.guard():
            try:
                with _heeding_cancellation():
                    answer = await call(request, timeout=left, metadata=tuple(metadata))
            except grpc.aio.AioRpcError as error:
                raise status.from_rpc_error(error) from error
            return method.checked(answer)


class StreamCallable:
    """Calls an RPC that gives a stream of answers."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def __call__(
        self, request: Any, *, timeout: float | None = None, metadata: Metadata = (), **_: Any
    ) -> AnswerStream:
        """Return the answers; iterating raises MeshError. `timeout` is in seconds and cut to the contract's."""
        return AnswerStream(self._method, request, timeout, metadata)


class AnswerStream(AsyncIterator[Any]):
    """The answers of a call, in order. `cancel` or `aclose` it unless it was read to its end.

    A call that fails before its first answer is tried again where the contract allows; after that never, as only the
    caller knows where to resume.
    """

    def __init__(self, method: Method, request: Any, timeout: float | None, metadata: Metadata) -> None:
        self._method = method
        self._request = request
        # Now: where its answers are read may act for another.
        self._metadata = tuple(method.metadata(metadata))
        self._call: Any = None
        self._is_cancelled = False
        self._answers = self._run(method.ends(timeout))

    def __aiter__(self) -> AnswerStream:
        return self

    async def __anext__(self) -> Any:
        with _told_if_hung_up(lambda: self._is_cancelled):
            return await anext(self._answers)

    def cancel(self) -> bool:
        """End the call now; return False if it had ended."""
        self._is_cancelled = True
        return self._end()

    def _end(self) -> bool:
        return self._call is not None and bool(self._call.cancel())

    async def aclose(self) -> None:
        """End the call and wait until nothing of it runs here."""
        self.cancel()
        await self._answers.aclose()

    async def _run(self, ends: float) -> AsyncGenerator[Any, None]:
        method = self._method
        # What an iterator has given once cannot be sent again.
        repeatable = isinstance(self._request, Message) and retry.may_retry(method.policy, self._request)
        method.downstream.budget.earn(method.policy.retry_percent)
        attempt = 1
        while True:
            try:
                answers, first = await self._first(ends)
                break
            except MeshError as error:
                if not repeatable:
                    raise
                await method.pause(error, attempt=attempt, ends=ends)
            attempt += 1
        if first is None:
            return
        yield first
        try:
            while (answer := await _next(answers)) is not None:
                yield method.checked(answer)
        finally:
            self._end()

    async def _first(self, ends: float) -> tuple[AsyncIterator[Any], Any]:
        """Make the call; return its answers and the first of them, None if there are none."""
        method = self._method
        call = await method.open_call()
        left = method.left(ends)
        with method.downstream.breaker.guard():
            self._call = call(self._request, timeout=left, metadata=self._metadata)
            answers = aiter(self._call)
            try:
                first = await _next(answers)
            except asyncio.CancelledError:
                self._end()
                raise
            return answers, None if first is None else method.checked(first)


async def _next(answers: AsyncIterator[Any]) -> Any:
    """Return the next answer, None after the last."""
    try:
        with _heeding_cancellation():
            return await anext(answers, None)
    except grpc.aio.AioRpcError as error:
        raise status.from_rpc_error(error) from error
