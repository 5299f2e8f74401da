"""What a caller wants done once: the same `request_id` with the same request is the same intent. Knows no gRPC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from cellmesh.mesh.errors import MeshError


class Serializable(Protocol):
    """A message, as far as the store needs to know it."""

    def SerializeToString(self, *, deterministic: bool) -> bytes:
        """Return its bytes."""


Answer = TypeVar("Answer", bound=Serializable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent(Generic[Answer]):
    """One mutation, and how its answer is written. `answers.intent_of` makes it of a request."""

    method: str
    """The full name of the RPC's request, such as `cellmesh.api.hypervisor.v1.StopVmRequest`."""
    request_id: str
    """Chosen by the caller for this intent."""
    fingerprint: bytes
    """SHA-256 of the request."""
    encode: Callable[[Any], Answer]
    """Makes the answer of what the mutation returns."""
    decode: Callable[[bytes], Answer]
    """Reads an answer that was stored."""
    encode_refusal: Callable[[MeshError], Serializable]
    """Makes what is stored of a refusal that is the answer."""
    decode_refusal: Callable[[bytes], MeshError]
    """Reads a refusal that was stored."""
