"""When a container that ended is started again."""

from __future__ import annotations

import pytest

from cellmesh.guest.containers.backoff import Ended, Restarts
from cellmesh.guest.containers.model import RestartMode, RestartPolicy

_CRASH = Ended(exit_code=1, ran=0.1)


@pytest.mark.parametrize(
    ("mode", "code", "wanted"),
    [
        (RestartMode.NEVER, 1, False),
        (RestartMode.ON_FAILURE, 0, False),
        (RestartMode.ON_FAILURE, 137, True),
        (RestartMode.ALWAYS, 0, True),
    ],
)
def test_the_mode_decides(mode: RestartMode, code: int, wanted: bool) -> None:
    """Each mode restarts after the ends it names and no other."""
    restarts = Restarts(RestartPolicy(mode=mode), lambda: 0.5)
    assert restarts.wanted(Ended(exit_code=code, ran=1.0)) is wanted


def test_the_wait_doubles_up_to_its_bound_and_then_it_is_given_up() -> None:
    """The delays are those of the policy, and there are no more than it allows."""
    policy = RestartPolicy(max_restarts=5, initial_backoff=1.0, max_backoff=6.0)
    restarts = Restarts(policy, lambda: 0.5)
    assert [restarts.next_delay(_CRASH) for _ in range(6)] == [1.0, 2.0, 4.0, 6.0, 6.0, None]


def test_a_run_of_a_minute_starts_the_count_anew() -> None:
    """A container that ran well is not held to its past."""
    restarts = Restarts(RestartPolicy(max_restarts=1), lambda: 0.5)
    assert restarts.next_delay(_CRASH) == 1.0
    assert restarts.next_delay(Ended(exit_code=1, ran=60.0)) == 1.0
    assert restarts.next_delay(_CRASH) is None


def test_the_wait_is_spread() -> None:
    """Chance moves the delay a fifth either way and no further."""
    for chance, delay in ((0.0, 0.8), (1.0, 1.2)):
        assert Restarts(RestartPolicy(), lambda chance=chance: chance).next_delay(_CRASH) == pytest.approx(delay)


def test_a_thousand_restarts_stay_finite() -> None:
    """The longest policy of the contract does not overflow."""
    restarts = Restarts(RestartPolicy(max_restarts=1000, initial_backoff=600.0, max_backoff=3600.0), lambda: 0.5)
    assert [restarts.next_delay(_CRASH) for _ in range(1000)][-1] == 3600.0
