"""What every inbound call goes through: caller, policy, deadline, contract rules, errors, traces, log context."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from cellmesh.mesh import deadline, logs, on_behalf, status, telemetry
from cellmesh.mesh.errors import CallerNotAllowed, Code, DeadlineExceeded, InvalidRequest, MeshError
from cellmesh.mesh.identity import Caller, calling
from cellmesh.mesh.policy import MethodPolicy, policy_of
from cellmesh.mesh.validation import check_request
from cellmesh.mesh.wire import Undecodable, decoder

Context = grpc.aio.ServicerContext[Any, Any]
Identify = Callable[[Context], Caller | None]
# gRPC types handlers for its blocking API only.
Handler = Any
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]
Refused = Callable[[str, Caller | None], None]
"""Is told of a call that its caller may not make: the method, and the caller if it is known."""
Streams = list[AsyncGenerator[Any, None]]
Request = Message | Undecodable
Admission = AbstractAsyncContextManager[None]

_log = structlog.get_logger()


class PolicyInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stub only
    """Enforces the contracts' policies on one kind of listener.

    `identify` says who calls; `tracing` gives calls their spans and is absent where a caller's trace context is not to
    be believed; `lines` bounds what callers that are not trusted can have us write; `verify` verifies user tokens, and
    is absent where none is accepted; `refused` is told of callers that may not make a call; `names` are added to every
    log line of a call.
    """

    def __init__(
        self,
        identify: Identify,
        *,
        tracing: telemetry.ServerInterceptor | None = None,
        lines: logs.LineBudget | None = None,
        verify: on_behalf.Verify | None = None,
        refused: Refused | None = None,
        **names: str,
    ) -> None:
        self._identify = identify
        self._tracing = tracing
        self._lines = lines
        self._verify = verify
        self._refused = refused
        self._names = names

    async def intercept_service(  # type: ignore[override]  # the stub wants `method_handler` types grpc does not export
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Return the handler of a method with everything around it, or None if nobody serves it."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        streams: Streams = []
        admitted = _guarded(handler, functools.partial(self._admit, method, policy_of(method)), streams)
        if self._tracing is None:
            return _drained(admitted, streams)

        async def innermost(_: grpc.HandlerCallDetails) -> Handler:
            return admitted

        return _drained(await self._tracing.intercept_service(innermost, handler_call_details), streams)

    @asynccontextmanager
    async def _admit(
        self, method: str, policy: MethodPolicy, context: Context, request: Request | None
    ) -> AsyncIterator[None]:
        """Let an allowed caller in for as long as its deadline; answer with an error of the contract if it fails.

        `request` is that of a call that has one; of a stream each is checked as it is read.
        """
        caller = self._identify(context)
        names = {"method": method, "caller": caller.name if caller else "nobody", **self._names}
        with logs.context(**names):
            try:
                if caller is None or caller.role not in policy.callers:
                    if self._refused is not None:
                        self._refused(method, caller)
                    raise _not_allowed(method, caller)
                with self._acting(method, policy, caller, context, request):
                    async with _limited(method, policy.seconds(_time_left(context))):
                        yield
            except grpc.aio.AbortError:
                # gRPC's own services end calls this way, and have said what they mean.
                raise
            except Exception as error:
                answer = status.public(error, telemetry.trace_id())
                self._note(error, answer)
                await context.abort(status.grpc_code(answer), status.to_status(answer).message, status.trailers(answer))

    @contextmanager
    def _acting(
        self, method: str, policy: MethodPolicy, caller: Caller, context: Context, request: Request | None
    ) -> Iterator[None]:
        """Let domain code know who calls and for whom; raise what is wrong with the user or with the request."""
        metadata = context.invocation_metadata() or ()
        user, tokens = on_behalf.inbound(method, policy, caller, metadata, self._verify)
        checked = None if request is None else _checked(request)
        user = on_behalf.settled(method, policy, caller, user, checked)
        if user is None:
            with calling(caller):
                yield
            return
        with (
            logs.context(user=user.user_id),
            calling(replace(caller, user=user)),
            on_behalf.acting_for(*tokens),
        ):
            yield

    def _note(self, error: Exception, answer: MeshError) -> None:
        """Write down how a call failed, with all that its caller is not told."""
        left_out = self._lines.take() if self._lines else 0
        if left_out is None:
            return
        log = _log.bind(code=answer.code.name, reason=answer.reason, lines_left_out=left_out)
        if answer.code is Code.INTERNAL:
            log.error("call.failed", exc_info=error, **answer.metadata)
        else:
            log.info("call.refused", error=answer.message)


def _not_allowed(method: str, caller: Caller | None) -> CallerNotAllowed:
    who = "A caller without an identity" if caller is None else f"{caller.name} ({caller.role.name.lower()})"
    return CallerNotAllowed(f"{who} may not call {method}. The contract names who may.")


@asynccontextmanager
async def _limited(method: str, seconds: float) -> AsyncIterator[None]:
    """End what runs inside after `seconds` with DeadlineExceeded."""
    timeout = asyncio.timeout(seconds)
    try:
        with deadline.scope(seconds):
            async with timeout:
                yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise DeadlineExceeded(f"{method} was not ready within {seconds:g} s. Try again, or allow more time.") from None


def _time_left(context: Context) -> float | None:
    """Return the seconds the caller gave, or None if it gave no deadline."""
    left: float | None = context.time_remaining()
    return left


def _guarded(handler: Handler, admit: Callable[[Context, Request | None], Admission], streams: Streams) -> Handler:
    """Return the same handler, admitted and with every request checked."""

    def entered(request: Any, context: Context) -> tuple[Admission, Any]:
        if handler.request_streaming:
            return admit(context, None), _checked_stream(request)
        return admit(context, request), request

    if handler.response_streaming:
        behavior = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def answer(request: Any, context: Context) -> AsyncGenerator[Any, None]:
            admission, incoming = entered(request, context)
            async with admission:
                answers = behavior(incoming, context)
                if not hasattr(answers, "__aiter__"):
                    # A coroutine that writes its answers itself, as gRPC's own health service does.
                    await answers
                    return
                async with aclosing(answers):
                    async for each in answers:
                        yield each

        def stream(request: Any, context: Context) -> AsyncGenerator[Any, None]:
            streams.append(answer(request, context))
            return streams[-1]

        return _like(handler, stream)

    unary_behavior = handler.stream_unary if handler.request_streaming else handler.unary_unary

    async def unary(request: Any, context: Context) -> Any:
        admission, incoming = entered(request, context)
        async with admission:
            return await unary_behavior(incoming, context)
        raise AssertionError("admit never swallows an error")

    return _like(handler, unary)


def _drained(handler: Handler, streams: Streams) -> Handler:
    """Return a handler whose answers are written by a coroutine.

    gRPC leaves a generator it stops reading to the garbage collector, which closes it in another task: too late, and
    with another context. A coroutine closes it where it ran.
    """
    if not handler.response_streaming:
        return handler
    behavior = handler.stream_stream if handler.request_streaming else handler.unary_stream

    async def drain(request: Any, context: Context) -> None:
        answers = behavior(request, context)
        begun = told = False
        try:
            async for answer in answers:
                try:
                    if not begun:
                        begun = True
                        await _begin(context)
                    await context.write(answer)
                except asyncio.CancelledError:
                    if told:
                        raise
                    # A limit within the answers ran out while one was written: only there it is known what that means.
                    told = True
                    _cancel_again()
        finally:
            # The innermost first: OpenTelemetry's generator does not close the one it reads.
            for stream in (*streams, answers):
                await stream.aclose()

    return _like(handler, drain)


async def _begin(context: Context) -> None:
    """Send the headers of an answer, to their end even if cancelled: half begun, gRPC cannot say how a call ended."""
    sending = asyncio.ensure_future(context.send_initial_metadata(()))
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:
        await asyncio.wait({sending})
        raise


def _cancel_again() -> None:
    """Have this task cancelled where it waits next, and not counted twice."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
        task.cancel()


def _like(handler: Handler, behavior: Any) -> Handler:
    """Return a handler of the same kind as `handler` with another behavior."""
    factory = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    made: Handler = factory(
        behavior,
        request_deserializer=decoder(handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )
    return made


def _checked(request: Request) -> Message:
    if isinstance(request, Undecodable):
        raise InvalidRequest(f"The request is not a message of the contract: {request.detail}. Correct the client.")
    check_request(request)
    return request


async def _checked_stream(requests: AsyncIterator[Request]) -> AsyncIterator[Message]:
    async for request in requests:
        yield _checked(request)
