"""Bytes that are no message, kept until somebody can say whose fault they are.

gRPC answers UNKNOWN for a request it cannot decode, before any policy was asked, and hands on None for such an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecodable:
    """Stands where a message should."""

    detail: str
    """What the decoder says."""


def decoder(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Return a decoder that gives Undecodable instead of raising; None, which leaves bytes as they are, stays None."""
    if decode is None:
        return None

    def tolerant(data: bytes | None) -> Any:
        if data is None:
            # What gRPC has when a call ends well without the one answer it should have had.
            return Undecodable(detail="there was no answer")
        try:
            return decode(data)
        except DecodeError as error:
            return Undecodable(detail=str(error))

    return tolerant
