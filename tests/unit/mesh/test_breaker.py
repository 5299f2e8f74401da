"""The breaker behaves as a thirty-line model of it, whatever the order of calls, outcomes and time."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from cellmesh.mesh.breaker import Breaker, BreakerOpen
from cellmesh.mesh.errors import Code, DeadlineExceeded, DownstreamUnavailable, InvalidRequest, MeshError

FAIL_MAX = 3
RESET = 10.0
OUTCOMES: list[BaseException | None] = [
    None,
    DownstreamUnavailable("gone"),
    DeadlineExceeded("late"),
    InvalidRequest("wrong"),
    asyncio.CancelledError(),
]


class Model:
    """What the breaker is to do, said as plainly as possible."""

    def __init__(self) -> None:
        self.state, self.failures, self.opened, self.era = "closed", 0, 0.0, 0
        self.probe: int | None = None
        self.probe_since = 0.0

    def admit(self, call: int, now: float) -> tuple[bool, int]:
        """Return whether the call may be made, and its era."""
        if self.state == "closed":
            return True, self.era
        if self.state == "open":
            if now - self.opened < RESET:
                return False, self.era
            self.state, self.era = "half-open", self.era + 1
        if self.probe is not None and now - self.probe_since < RESET:
            return False, self.era
        self.probe, self.probe_since = call, now
        return True, self.era

    def end(self, call: int, era: int, outcome: BaseException | None, now: float) -> None:
        """Take the outcome of a call in."""
        if era == self.era and not isinstance(outcome, asyncio.CancelledError):
            failed = isinstance(outcome, DownstreamUnavailable | DeadlineExceeded)
            self.failures = self.failures + 1 if failed else 0
            if failed and (self.state == "half-open" or self.failures >= FAIL_MAX):
                self.state, self.opened, self.era, self.probe = "open", now, self.era + 1, None
            elif not failed and self.state == "half-open":
                self.state, self.era, self.probe = "closed", self.era + 1, None
            if self.state == "closed" and era != self.era:
                self.failures = 0
        if self.probe == call:
            self.probe = None


class BreakerMachine(RuleBasedStateMachine):
    """Calls that overlap, end in any way, and time that passes."""

    calls = Bundle("calls")

    @initialize()
    def start(self) -> None:
        """Begin closed."""
        self.now = 1000.0
        self.breaker = Breaker("d", fail_max=FAIL_MAX, reset_timeout=RESET, clock=lambda: self.now)
        self.model = Model()
        self.made = 0

    @rule(target=calls)
    def begin(self) -> tuple[AbstractContextManager[None], int, int] | None:
        """Make a call."""
        self.made += 1
        allowed, era = self.model.admit(self.made, self.now)
        guard = self.breaker.guard()
        if not allowed:
            with pytest.raises(BreakerOpen) as refusal:
                guard.__enter__()
            assert refusal.value.retry_after is not None
            assert 0 < refusal.value.retry_after.total_seconds() <= RESET
            return None
        guard.__enter__()
        return guard, self.made, era

    @rule(call=consumes(calls), outcome=st.sampled_from(OUTCOMES))
    def end(self, call: tuple[AbstractContextManager[None], int, int] | None, outcome: BaseException | None) -> None:
        """End a call; what it raised comes out as it was."""
        if call is None:
            return
        guard, number, era = call
        if outcome is None:
            guard.__exit__(None, None, None)
        else:
            assert not guard.__exit__(type(outcome), outcome, None)
        self.model.end(number, era, outcome, self.now)

    @rule(seconds=st.sampled_from([0.1, 3.0, RESET, 25.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    @invariant()
    def states_agree(self) -> None:
        """Compare the breaker with the model."""
        assert self.breaker.state == self.model.state


TestBreakerMachine = BreakerMachine.TestCase


def _fail(breaker: Breaker, error: BaseException, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(type(error)), breaker.guard():
            raise error


def test_only_illness_opens() -> None:
    """Errors that are answers never open it, however many; those that say the downstream is ill do."""
    breaker = Breaker("d", fail_max=2)
    for code in Code:
        error = type("E", (MeshError,), {"code": code})("x")
        _fail(breaker, error, 2)
        expected = "open" if code in {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INTERNAL} else "closed"
        assert breaker.state == expected, code
        breaker = Breaker("d", fail_max=2)


def test_what_lies_behind_does_not_open() -> None:
    """A downstream that tells, with a reason of its own, of something else that is away is not ill itself."""
    away = type("GuestAway", (DownstreamUnavailable,), {"domain": "hypervisor.cellmesh"})("away")
    breaker = Breaker("d", fail_max=2)
    _fail(breaker, away, 10)
    assert breaker.state == "closed"
    _fail(breaker, DownstreamUnavailable("gone"), 2)
    assert breaker.state == "open"


def test_cancelled_probe_does_not_close() -> None:
    """A user who goes away while the downstream is being tried proves nothing; the next call tries again."""
    now = [0.0]
    breaker = Breaker("d", fail_max=1, reset_timeout=5.0, clock=lambda: now[0])
    _fail(breaker, DownstreamUnavailable("x"))
    now[0] = 6.0
    _fail(breaker, asyncio.CancelledError())
    assert breaker.state == "half-open"
    with breaker.guard():
        pass
    assert breaker.state == "closed"


def test_ten_calls_at_once_are_one_probe() -> None:
    """While one call tries a downstream that was ill, the others are refused at once."""
    now = [0.0]
    breaker = Breaker("d", fail_max=1, reset_timeout=5.0, clock=lambda: now[0])
    _fail(breaker, DownstreamUnavailable("x"))
    now[0] = 6.0
    with breaker.guard():
        for _ in range(9):
            with pytest.raises(BreakerOpen), breaker.guard():
                pytest.fail("two probes at once")
    assert breaker.state == "closed"
