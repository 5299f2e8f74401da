"""When a guest that does not answer is dead, and when the host only gave it no processor.

All limits count the time that the guest could use: the time that passed, less the time its VMM waited for a processor
and less the time by which the hypervisor itself was late. A guest that uses its processors and says nothing gets no
more time than an idle one. An overloaded host is no excuse for ever: each limit ends after ten times its length.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cellmesh.hypervisor.vmm.processor import ProcessorTime

QUESTIONS = 3
"""How often a silent guest is asked at least before its epoch is ended."""
_MOST_STRETCH = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What was measured from one moment on, all in seconds."""

    passed: float
    used: float
    """Processor time of the VMM."""
    waited: float
    """Time in which the VMM waited for a processor, at most `passed`."""
    late: float
    """Time by which the hypervisor itself was late, at most `passed`."""

    @property
    def usable(self) -> float:
        """The time that the guest could use."""
        return max(self.passed - self.waited - self.late, 0.0)

    def is_over(self, limit: float) -> bool:
        """Tell whether a limit in seconds is used up."""
        return self.usable >= limit or self.passed >= _MOST_STRETCH * limit

    def __str__(self) -> str:
        told = f"its VMM used {self.used:.1f} s of processor time and waited {self.waited:.1f} s for a processor"
        if self.late >= 1:
            told += f", the hypervisor was late by {self.late:.1f} s"
        if self.waited + self.late > self.passed / 2:
            return f"{told}: the host is overloaded"
        return told


class Watch:
    """Measures from a moment on. `measure` gives the VMM's processor time so far."""

    def __init__(self, measure: Callable[[], ProcessorTime], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._measure = measure
        self._clock = clock
        self._begun = clock()
        self._before = measure()
        self._late = 0.0

    def add_lateness(self, seconds: float) -> None:
        """Count time by which the hypervisor was late."""
        self._late += max(seconds, 0.0)

    def window(self) -> Window:
        """Return what was measured so far."""
        passed = self._clock() - self._begun
        spent = self._measure().since(self._before)
        waited = min(spent.waited, passed)
        return Window(passed=passed, used=spent.used, waited=waited, late=min(self._late, passed - waited))

    def remaining(self, limit: float) -> float:
        """Return the seconds after which a limit may be used up, 0 if it is."""
        window = self.window()
        return 0.0 if window.is_over(limit) else limit - window.usable


class Silence:
    """The questions to one silent guest. `limit` is the usable time, in seconds, that it gets to answer."""

    def __init__(self, watch: Watch, *, limit: float) -> None:
        self._watch = watch
        self._limit = limit
        self.questions = 0

    def unanswered(self, *, took: float, within: float) -> str | None:
        """Count a question without an answer; return why the guest is dead, None while it may be alive.

        `took` is how long the question took, `within` how long it should have taken at most, both in seconds.
        """
        self.questions += 1
        self._watch.add_lateness(took - within)
        window = self._watch.window()
        if self.questions < QUESTIONS or not window.is_over(self._limit):
            return None
        return f"It was asked {self.questions} times in {window.passed:.1f} s and did not answer; {window}."
