"""Intents of tests, whose answers hold what the mutation returned as it is."""

from __future__ import annotations

import pickle
import uuid
from dataclasses import dataclass
from typing import Any

from google.rpc import status_pb2

from cellmesh.mesh import status
from cellmesh.mesh.errors import MeshError
from cellmesh.service.intent import Intent


@dataclass(frozen=True)
class Answered:
    """An answer."""

    value: Any

    def SerializeToString(self, *, deterministic: bool) -> bytes:
        """Return its bytes."""
        return pickle.dumps(self.value)

    @classmethod
    def decode(cls, document: bytes) -> Answered:
        """Return the answer of `SerializeToString`."""
        return cls(pickle.loads(document))  # noqa: S301  # our own


def refusal(document: bytes) -> MeshError:
    """Return a refusal that was stored."""
    return status.from_status(status_pb2.Status.FromString(document))


def intent(fingerprint: bytes = b"x", *, method: str = "Test", request_id: str = "") -> Intent[Answered]:
    """Return an intent that nobody had before, or the one with this `request_id`."""
    return Intent(
        method=method,
        request_id=request_id or str(uuid.uuid4()),
        fingerprint=fingerprint,
        encode=Answered,
        decode=Answered.decode,
        encode_refusal=status.to_status,
        decode_refusal=refusal,
    )
