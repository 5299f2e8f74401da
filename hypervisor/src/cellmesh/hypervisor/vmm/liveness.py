"""When a guest or program that does not answer is dead, and when the host only gave it no processor.

All limits count the time that it could use: the time that passed, less the time its process waited for a processor and
less the time by which the hypervisor itself was late. What uses its processors and says nothing gets no more time than
what is idle. An overloaded host is no excuse for ever: each limit ends after ten times its length.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from cellmesh.hypervisor.vmm.processor import ProcessorTime, processor_time

QUESTIONS = 3
"""How often what is silent is asked at least before it is ended."""
_MOST_STRETCH = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What was measured from one moment on, all in seconds."""

    passed: float
    used: float
    """Processor time of the process."""
    waited: float
    """Time in which the process waited for a processor, at most `passed`."""
    late: float
    """Time by which the hypervisor itself was late, at most `passed`."""

    @property
    def usable(self) -> float:
        """The time that the process could use."""
        return max(self.passed - self.waited - self.late, 0.0)

    def is_over(self, limit: float) -> bool:
        """Tell whether a limit in seconds is used up."""
        return self.usable >= limit or self.passed >= _MOST_STRETCH * limit

    @property
    def is_overloaded(self) -> bool:
        """Tell whether the host kept the process waiting for most of the time."""
        return self.waited + self.late > self.passed / 2

    def __str__(self) -> str:
        told = f"its process used {self.used:.1f} s of processor time and waited {self.waited:.1f} s for a processor"
        if self.late >= 1:
            told += f", the hypervisor was late by {self.late:.1f} s"
        if self.is_overloaded:
            return f"{told}: the host is overloaded"
        return told


class Watch:
    """Measures from a moment on. `measure` gives the process's processor time so far."""

    def __init__(self, measure: Callable[[], ProcessorTime], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._measure = measure
        self._clock = clock
        self._begun = clock()
        self._before = measure()
        self._late = 0.0

    @classmethod
    def of(cls, pid: int) -> Self:
        """Begin to measure a process; of one that is not there nothing but the clock counts."""
        return cls(lambda: processor_time(pid))

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
    """The questions to a silent guest or program. `limit` is the usable time, in seconds, that it gets to answer."""

    def __init__(self, watch: Watch, *, limit: float) -> None:
        self._watch = watch
        self._limit = limit
        self.questions = 0

    def unanswered(self, *, took: float, within: float) -> str | None:
        """Count a question without an answer; return why it is dead, None while it may be alive.

        `took` is how long the question took, `within` how long it should have taken at most, both in seconds.
        """
        self.questions += 1
        self._watch.add_lateness(took - within)
        window = self._watch.window()
        if self.questions < QUESTIONS or not window.is_over(self._limit):
            return None
        return f"It was asked {self.questions} times in {window.passed:.1f} s and did not answer; {window}."


@asynccontextmanager
async def usable(seconds: float, watch: Watch) -> AsyncIterator[None]:
    """Raise TimeoutError if what is done inside takes more than so many seconds that the watched process could use."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def look(due: float) -> None:
        nonlocal timer
        watch.add_lateness(loop.time() - due)
        if (left := watch.remaining(seconds)) > 0:
            due = loop.time() + left
            timer = loop.call_at(due, look, due)
        else:
            end.reschedule(loop.time())

    due = loop.time() + seconds
    timer = loop.call_at(due, look, due)
    try:
        async with asyncio.timeout(None) as end:
            yield
    finally:
        timer.cancel()
