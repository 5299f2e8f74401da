"""Retries never amplify an outage, and never come back in step."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cellmesh.mesh import retry
from cellmesh.mesh.breaker import BreakerOpen
from cellmesh.mesh.errors import DownstreamUnavailable, InvalidRequest
from cellmesh.mesh.identity import Role
from cellmesh.mesh.policy import MethodPolicy, Retry

POLICY = MethodPolicy(
    default_deadline=5,
    max_deadline=10,
    retry=Retry.SAFE,
    max_attempts=3,
    retry_percent=20,
    callers=frozenset({Role.OPERATOR}),
)
GONE = DownstreamUnavailable("gone")


def _delay(error: Exception = GONE, *, attempt: int = 1, left: float = 5.0, jitter: float = 1.0) -> float | None:
    assert isinstance(error, DownstreamUnavailable | InvalidRequest)
    return retry.delay(
        error,
        attempt=attempt,
        policy=POLICY,
        left=left,
        budget=retry.RetryBudget(),
        uniform=lambda low, high: low + (high - low) * jitter,
    )


def test_outage_is_not_amplified() -> None:
    """A thousand calls to a dead downstream at 20 % make at most 1.2 times as many tries, and a burst of three."""
    budget = retry.RetryBudget()
    retries = 0
    for _ in range(1000):
        budget.earn(POLICY.retry_percent)
        while budget.spend():
            retries += 1
    assert 190 <= retries <= 203


def test_quiet_time_saves_up_little() -> None:
    """Ten thousand good calls do not pay for a storm."""
    budget = retry.RetryBudget()
    for _ in range(10_000):
        budget.earn(100)
    assert sum(budget.spend() for _ in range(100)) == 10


def test_jitter_is_full() -> None:
    """A wait is anything from nothing to its limit, and the limit doubles."""
    assert _delay(jitter=0.0) == 0.0
    first, second = _delay(attempt=1), _delay(attempt=2)
    assert first is not None
    assert second == pytest.approx(first * 2)


def test_retry_info_is_the_least_wait() -> None:
    """A downstream that says when to come back is not asked sooner."""
    wait = _delay(DownstreamUnavailable("later", retry_after=timedelta(seconds=2)), jitter=0.0)
    assert wait == 2.0


@pytest.mark.parametrize(
    ("error", "attempt", "left"),
    [(InvalidRequest("no"), 1, 5.0), (BreakerOpen("open"), 1, 5.0), (GONE, 3, 5.0), (GONE, 1, 0.05)],
    ids=["answered", "breaker open", "last try", "no time left"],
)
def test_no_retry(error: Exception, attempt: int, left: float) -> None:
    """What was answered, is not asked, was tried enough or has no time left is not sent again."""
    assert _delay(error, attempt=attempt, left=left) is None
