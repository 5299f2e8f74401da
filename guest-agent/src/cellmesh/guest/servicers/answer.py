"""How every call is answered: refusals as google.rpc.Status, and the span that lets the host trace into the guest."""

import functools
import os
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from cellmesh.guest.errors import GuestError, Internal
from cellmesh.guest.status import encode_status

_Servicer = TypeVar("_Servicer")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_MESSAGE_LIMIT = 1024

Context = grpc.aio.ServicerContext[Any, Any]  # The stubs' base fixes neither type for a servicer.
Handler = Callable[[_Servicer, _Request, Context], Awaitable[_Response]]
StreamHandler = Callable[[_Servicer, AsyncIterator[_Request], Context], Awaitable[None]]
_Metadata = tuple[tuple[str, str | bytes], ...]


def answered(handler: Handler[_Servicer, _Request, _Response]) -> Handler[_Servicer, _Request, _Response]:
    """Make a handler's GuestError a refusal, any other error INTERNAL, and report its span to a caller that traces."""

    @functools.wraps(handler)
    async def answer(servicer: _Servicer, request: _Request, context: Context) -> _Response:
        began = time.monotonic()
        try:
            response = await handler(servicer, request, context)
        except GuestError as error:
            refusal = error
        except Exception:  # Nothing of the guest's inside belongs on the wire; the console has it.
            traceback.print_exc()
            refusal = Internal("a fault of the agent; the VM's console has the rest")
        else:
            context.set_trailing_metadata(_span(context, began))
            return response
        message = str(refusal)[:_MESSAGE_LIMIT]
        code = grpc.StatusCode[refusal.code]
        details = encode_status(code.value[0], message, refusal.reason, refusal.domain, refusal.metadata)
        trailing: _Metadata = (("grpc-status-details-bin", details), *_span(context, began))
        await context.abort(code, message, trailing)
        raise AssertionError("abort returned")

    return answer


def _span(context: Context, began: float) -> _Metadata:
    metadata = dict(context.invocation_metadata() or ())
    if "traceparent" not in metadata:
        return ()
    duration = int((time.monotonic() - began) * 1e6)
    return (("cellmesh-guest-span", f"{os.urandom(8).hex()} 0 {duration}"),)
