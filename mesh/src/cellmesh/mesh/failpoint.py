"""Places where a test may let the process die, to prove that a crash there loses nothing."""

from __future__ import annotations

import os
import signal

_declared: set[str] = set()
_armed: str | None = None


class UnknownFailpoint(LookupError):
    """No module declares a failpoint of this name; the message lists those there are."""


def declare(name: str) -> str:
    """Name a place once, where its module defines it; return the name for `reach`."""
    _declared.add(name)
    return name


def names() -> frozenset[str]:
    """Return every failpoint of the modules that are imported."""
    return frozenset(_declared)


def arm(name: str | None) -> None:
    """Let the process die when it reaches `name`, or nowhere; raise UnknownFailpoint."""
    global _armed
    if name is not None:
        _require(name)
    _armed = name


def reach(name: str) -> None:
    """Die by SIGKILL if this is the failpoint that was armed; raise UnknownFailpoint for a name nobody declared."""
    _require(name)
    if name == _armed:
        os.kill(os.getpid(), signal.SIGKILL)


def _require(name: str) -> None:
    if name not in _declared:
        raise UnknownFailpoint(f"No failpoint {name!r}. There are: {', '.join(sorted(_declared)) or 'none'}.")
