"""Answers as they are stored: the message of the method, or the google.rpc.Status of a refusal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message
from google.rpc import status_pb2  # type: ignore[import-untyped]  # no stubs

from cellmesh.mesh import status
from cellmesh.mesh.errors import MeshError, RemoteError
from cellmesh.service.intent import Intent


class Mutation(Protocol):
    """A request that changes something."""

    request_id: str
    DESCRIPTOR: Any

    def SerializeToString(self, *, deterministic: bool) -> bytes:
        """Return its bytes."""


M = TypeVar("M", bound=Message)


class RecordedError(MeshError):
    """A refusal that a mutation was answered with, told again to who repeats it."""

    def __init__(self, error: RemoteError) -> None:
        super().__init__(error.message, metadata=error.metadata, retry_after=error.retry_after)
        # An instance carries what its class cannot know.
        self.__dict__.update(code=error.code, reason=error.reason, domain=error.domain)


def intent_of(request: Mutation, answer_type: type[M], encode: Callable[[Any], M]) -> Intent[M]:
    """Return the intent of a request whose answer `encode` makes; ValueError if the request has no `request_id`."""
    if not request.request_id:
        raise ValueError(f"{request.DESCRIPTOR.full_name} has no request_id")
    return Intent(
        method=request.DESCRIPTOR.full_name,
        request_id=request.request_id,
        fingerprint=hashlib.sha256(request.SerializeToString(deterministic=True)).digest(),
        encode=encode,
        decode=answer_type.FromString,
        encode_refusal=status.to_status,
        decode_refusal=_refusal,
    )


def _refusal(document: bytes) -> MeshError:
    error = status.from_status(status_pb2.Status.FromString(document))
    return RecordedError(error) if isinstance(error, RemoteError) else error
