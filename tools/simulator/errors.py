"""Refusals of the simulated agent, in the wire form that the contract asks for."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # no stubs for these two

_DETAILS_KEY = "grpc-status-details-bin"


class Refusal(Exception):
    """Why a call is refused: a code, a reason of the contract, a sentence."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message


async def abort(context: grpc.aio.ServicerContext[Any, Any], refusal: Refusal) -> NoReturn:
    """End a call with a refusal."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=refusal.reason, domain="guest.cellmesh"))
    status = status_pb2.Status(code=refusal.code.value[0], message=refusal.message, details=[detail])
    metadata = ((_DETAILS_KEY, status.SerializeToString()),)
    await context.abort(refusal.code, refusal.message, metadata)
    raise AssertionError("abort returned")
