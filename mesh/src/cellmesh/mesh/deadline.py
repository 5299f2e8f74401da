"""What the inbound call has left, for the calls made on its behalf."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_expires: ContextVar[float | None] = ContextVar("cellmesh_deadline", default=None)


def remaining() -> float | None:
    """Return the seconds the inbound call has left, 0 if none, or None outside of one."""
    expires = _expires.get()
    return None if expires is None else max(expires - time.monotonic(), 0.0)


@contextmanager
def scope(seconds: float) -> Iterator[None]:
    """Let calls made inside end within `seconds`, or sooner where an outer scope says so."""
    outer = _expires.get()
    expires = time.monotonic() + seconds
    token = _expires.set(expires if outer is None else min(outer, expires))
    try:
        yield
    finally:
        _expires.reset(token)
