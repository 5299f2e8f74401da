"""The seconds a person has waited are counted from the first request, and for no more routes than there is room for."""

from __future__ import annotations

import pytest

from cellmesh.hypervisor.activator.asked import RouteKey
from cellmesh.hypervisor.activator.waits import FORGOTTEN_SECONDS, Waits


def _route(user: int = 1) -> RouteKey:
    return RouteKey(user_id=f"00000000-0000-4000-8000-{user:012d}", prefix="/")


@pytest.fixture
def now() -> list[float]:
    """Give a clock's one reading."""
    return [100.0]


def test_wait_goes_on_while_somebody_asks(now: list[float]) -> None:
    """A page that asks again and again waits as long as it has been asking."""
    waits = Waits(clock=lambda: now[0])
    for step in range(5):
        assert waits.seconds(_route()) == pytest.approx(step * (FORGOTTEN_SECONDS - 1))
        now[0] += FORGOTTEN_SECONDS - 1
    assert waits.seconds(_route(2)) == 0


def test_wait_that_ended_is_not_counted_to_the_next(now: list[float]) -> None:
    """What waits after an answer, or after nobody asked for long, waits anew."""
    waits = Waits(clock=lambda: now[0])
    waits.seconds(_route())
    now[0] += 5
    waits.over(_route())
    assert waits.seconds(_route()) == 0
    now[0] += FORGOTTEN_SECONDS + 1
    assert waits.seconds(_route()) == 0
    assert len(waits) == 1


def test_memory_is_bounded(now: list[float]) -> None:
    """Of too many routes the one asked for longest ago is forgotten, and no other."""
    waits = Waits(clock=lambda: now[0], most=3)
    for user in (1, 2, 3):
        waits.seconds(_route(user))
    now[0] += 1
    waits.seconds(_route(1))
    waits.seconds(_route(4))
    assert len(waits) == 3
    assert waits.seconds(_route(1)) == 1
    assert waits.seconds(_route(3)) == 1
    assert waits.seconds(_route(2)) == 0
