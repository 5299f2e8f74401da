"""How far a long step has come."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told about each step; `done` and `total` are in the step's own unit, `total` 0 when it is not known."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of `done` out of `total` of `stage`."""


def silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""
