"""Shows how far a long step has come."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cellmesh.cli.output import Output
from cellmesh.cli.text import printable

if TYPE_CHECKING:
    from rich.status import Status


class ProgressLine:
    """A spinner with the current stage on a terminal; one line a stage on standard error elsewhere."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._start = time.monotonic()
        self._stage = ""
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if self._output.is_terminal and not self._output.json:
            self._status = self._output.console().status("")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show a step of the store; the shape of cellmesh.image.Progress."""
        if self._status is not None:
            share = f" {100 * done // total} %" if total else ""
            self._status.update(f"{printable(stage)}{share}")
        elif stage != self._stage:
            self._output.note(f"{time.monotonic() - self._start:6.1f} s  {stage}")
        self._stage = stage
