"""Five hundred random lives of VMs, full of accidents, keep what must always hold; and what breaks it is noticed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from simulator import Hub
from support.defects import DEFECTS
from support.histories import VMS, Histories
from support.hollow_images import hollow_container, hollow_guest
from support.invariants import Broken
from support.node import short_directory
from support.world import World
from support.zygote import forked_node

_LIVES = 500
_STEPS = 40
_BOOT_SECONDS = 2
_ROUNDS_TO_NOTICE = 16

pytestmark = pytest.mark.chaos


@contextlib.contextmanager
def _world(defect: str = "") -> Iterator[type[Histories]]:
    """Give histories a node whose hypervisors have a defect."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        entered = _opened(loop, defect)
        world = runner.run(anext(entered))
        try:
            yield type("TheseHistories", (Histories,), {"world": world})
        finally:
            runner.run(anext(entered, None))


async def _opened(loop: asyncio.AbstractEventLoop, defect: str) -> AsyncIterator[World]:
    with short_directory() as directory:
        images = directory / "state" / "images"
        hollow_guest(images)
        image = hollow_container(images)
        async with (
            Hub(directory / "hub") as hub,
            forked_node(directory, hub.binary, defect=defect, boot_timeout=_BOOT_SECONDS) as it,
        ):
            yield World(loop=loop, it=it, hub=hub, image=image)


def _found(histories: type[Histories], *, rounds: int) -> list[Exception]:
    """Live that many rounds, or up to the first in which something does not hold; return what, first things first."""
    profile = settings(
        max_examples=rounds,
        stateful_step_count=_STEPS,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    # Played again a history may end otherwise, as it races real processes: Hypothesis calls that flaky.
    with contextlib.suppress(Broken, Flaky):
        run_state_machine_as_test(histories, settings=profile)
    return histories.world.found


@pytest.mark.timeout(900)
def test_random_lives_keep_what_must_hold() -> None:
    """Prove that no order of wishes, crashes and lost words leaves a VM other than wished, told wrongly, or behind."""
    with _world() as histories:
        assert _found(histories, rounds=_LIVES // VMS) == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_noticed(defect: str) -> None:
    """Prove that the histories above would fail if the hypervisor were wrong so, and by the invariant it breaks."""
    with _world(defect) as histories:
        first = next(iter(_found(histories, rounds=_ROUNDS_TO_NOTICE)), None)
        assert isinstance(first, Broken), first
        assert first.invariant is DEFECTS[defect].breaks, first
