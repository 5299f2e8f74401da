"""Whether a program that starts still moves: a slow machine is no reason to give it up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cellmesh.hypervisor.vmm.processor import ProcessorTime, processor_time

STILL_SECONDS = 60.0
"""How long a program that starts may do nothing."""
_TELL_SECONDS = 15.0
_LEAST_WORK_SECONDS = 1.0
"""Processor time that counts as work; timers of a program that hangs use less in STILL_SECONDS."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """Watches one program from its start on. It moves if it writes to its log, works, or waits for a processor."""

    name: str
    pid: int
    log: Path
    tell: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    measure: Callable[[int], ProcessorTime] = processor_time
    _begun: float = field(init=False)
    _moved: float = field(init=False)
    _told: float = field(init=False)
    _spent: float = field(init=False)
    _written: int = field(init=False)

    def __post_init__(self) -> None:
        self._begun = self._moved = self._told = self.clock()
        self._spent, self._written = self._processor(), self._log_bytes()

    def is_still(self) -> bool:
        """Look again; tell whether it has done nothing for STILL_SECONDS. `tell` hears of a long wait."""
        now, spent, written = self.clock(), self._processor(), self._log_bytes()
        if spent - self._spent >= _LEAST_WORK_SECONDS or written != self._written:
            self._moved, self._spent, self._written = now, spent, written
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            self.tell(
                f"Still waiting for {self.name} after {now - self._begun:.0f} s; it last moved "
                f"{now - self._moved:.0f} s ago. Its log is {self.log}."
            )
        return now - self._moved >= STILL_SECONDS

    def _processor(self) -> float:
        time_ = self.measure(self.pid)
        return time_.used + time_.waited

    def _log_bytes(self) -> int:
        try:
            return os.stat(self.log).st_size  # noqa: PTH116  # one call, twenty times a second
        except FileNotFoundError:
            return 0
