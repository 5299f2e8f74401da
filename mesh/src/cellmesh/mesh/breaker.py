"""One circuit breaker per downstream: pybreaker, made safe for asyncio.

Used naively under asyncio pybreaker counts nothing, or counts cancellation, lets every call through while half open,
and closes on a cancelled probe. So calls run outside of it; only their outcomes are replayed into it, and time and the
one probe are kept here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import pybreaker

from cellmesh.mesh.errors import COMMON_DOMAIN, Code, DownstreamUnavailable, MeshError

FAILURES = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INTERNAL})
"""What says that a downstream is ill; any other error is an answer like another."""
# A reason of the downstream's own is its answer: it is there, and tells of something behind it that is not.
_DOMAINS = frozenset({"", COMMON_DOMAIN})


class BreakerOpen(DownstreamUnavailable):
    """The downstream failed too often; it is not asked for a while."""


class Breaker:
    """Stops asking a downstream that keeps failing.

    `fail_max` failures in a row open it; after `reset_timeout` seconds one call is let through as a probe, whose
    success closes it. Cancelled calls say nothing about the downstream and count as neither. A probe without an outcome
    for another `reset_timeout`, such as a silent stream, no longer keeps others from trying.
    """

    def __init__(
        self,
        downstream: str,
        *,
        fail_max: int = 5,
        reset_timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._downstream = downstream
        self._reset_timeout = reset_timeout
        self._clock = clock
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=fail_max, reset_timeout=reset_timeout, throw_new_error_on_trip=False, name=downstream
        )
        self._opened_at = 0.0
        self._probe: object | None = None
        self._probe_since = 0.0
        # Grows with each change of state: what a call from before says of the downstream is old news then.
        self._era = 0

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        return self._breaker.current_state

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Run a call inside; raise BreakerOpen instead if the downstream is not to be asked."""
        era, probe = self._admit()
        try:
            yield
        except MeshError as error:
            self._report(era, failed=error.code in FAILURES and error.domain in _DOMAINS)
            raise
        else:
            self._report(era, failed=False)
        finally:
            if probe is not None and self._probe is probe:
                self._probe = None

    def _admit(self) -> tuple[int, object | None]:
        """Return the era a call starts in, and what marks it if it is a probe."""
        if self.state == pybreaker.STATE_CLOSED:
            return self._era, None
        now = self._clock()
        waited = now - self._opened_at
        if self.state == pybreaker.STATE_OPEN:
            if waited < self._reset_timeout:
                raise self._refusal(self._reset_timeout - waited)
            self._breaker.half_open()
            self._era += 1
        probing = now - self._probe_since
        if self._probe is not None and probing < self._reset_timeout:
            raise self._refusal(self._reset_timeout - probing)
        self._probe, self._probe_since = object(), now
        return self._era, self._probe

    def _report(self, era: int, *, failed: bool) -> None:
        if era != self._era:
            return
        before = self.state
        with suppress(_Failed):
            self._breaker.call(_replay, failed)
        if self.state != before:
            self._era += 1
            self._probe = None
            self._opened_at = self._clock()

    def _refusal(self, seconds: float) -> BreakerOpen:
        return BreakerOpen(
            f"{self._downstream} failed repeatedly and is not asked again yet. Try again in {seconds:.1f} s.",
            metadata={"downstream": self._downstream},
            retry_after=timedelta(seconds=seconds),
        )


class _Failed(Exception):  # never leaves this module
    """The outcome of a call that failed, for pybreaker."""


def _replay(failed: bool) -> None:  # noqa: FBT001  # pybreaker passes it on by position
    if failed:
        raise _Failed
