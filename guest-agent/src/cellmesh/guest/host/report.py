"""The reports: every container's status at the start, after each change, and from time to time."""

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

_Snapshot = TypeVar("_Snapshot")
_WINDOW = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Generic[_Snapshot]):
    """A snapshot with its place in the sequence of this boot."""

    sequence: int
    snapshot: _Snapshot


class ReportLog(Generic[_Snapshot]):
    """Numbers reports without gaps, and keeps what the host has not acknowledged.

    A report is the whole state, so a change that finds the window full needs no report of its own: the next one has it.
    """

    def __init__(self, *, window: int = _WINDOW) -> None:
        self._window = window
        self._last = 0
        self._unacknowledged: deque[Report[_Snapshot]] = deque()

    @property
    def has_room(self) -> bool:
        """Whether another report may be made before an acknowledgement."""
        return len(self._unacknowledged) < self._window

    @property
    def unacknowledged(self) -> tuple[Report[_Snapshot], ...]:
        """What must be sent again on a new stream, in order."""
        return tuple(self._unacknowledged)

    def add(self, snapshot: _Snapshot) -> Report[_Snapshot]:
        """Make the next report."""
        self._last += 1
        report = Report(sequence=self._last, snapshot=snapshot)
        self._unacknowledged.append(report)
        return report

    def acknowledge(self, sequence: int) -> None:
        """Let go of reports up to this one."""
        while self._unacknowledged and self._unacknowledged[0].sequence <= sequence:
            self._unacknowledged.popleft()
