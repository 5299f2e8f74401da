"""The controls of the drills that kill what is behind the edge: a kill that reaches further than it may is found."""

from __future__ import annotations

import functools
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from support import kills
from support.edge import Part, edge_on_simulator
from support.kills import Fault, Finding, Scene, scene_on
from support.zygote import forked_node

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sound() -> AsyncIterator[Scene]:
    """Give an edge with no defect, to arrange its processes otherwise."""
    async with scene_on(edge_on_simulator()) as it:
        yield it


def _defective(defect: str) -> AbstractAsyncContextManager[Scene]:
    """Give an edge whose hypervisor has a defect."""
    return scene_on(edge_on_simulator(functools.partial(forked_node, defect=defect)))


def _findings(faults: Iterable[Fault]) -> set[Finding]:
    return {fault.finding for fault in faults}


async def test_bridges_that_die_with_their_hypervisor_are_caught() -> None:
    """Prove that the drill finds requests and WebSockets that needed the hypervisor."""
    async with _defective("bridges die with their hypervisor") as scene:
        found = _findings(await kills.without_hypervisor(scene))
    assert found == {Finding.UNANSWERED, Finding.LINE_LOST}


async def test_a_hypervisor_that_serves_no_more_what_it_adopted_is_caught() -> None:
    """Prove that the drill finds requests that failed because Envoy came back to another word on the routes."""
    async with _defective("what was adopted is served no more") as scene:
        found = _findings(await kills.without_hypervisor(scene))
    assert found == {Finding.UNANSWERED}


async def test_one_bridge_for_all_is_caught(sound: Scene) -> None:
    """Prove that the drill finds what another VM loses when both have the one bridge."""
    found = _findings(await kills.without_a_bridge(sound, shared_with=[sound.bob]))
    # Envoy sends again what it could not send, and the next bridge may be there by then: requests need not fail.
    assert found - {Finding.UNANSWERED} == {Finding.LINE_LOST}


async def test_a_vm_that_ends_with_its_bridge_is_caught() -> None:
    """Prove that the drill finds a VM that was started anew because its bridge had died."""
    async with _defective("a VM ends with its bridge") as scene:
        found = _findings(await kills.without_a_bridge(scene))
    assert found == {Finding.RESTARTED}


class Together:
    """Parts that are one process: they start and end at once."""

    def __init__(self, *parts: Part) -> None:
        self._parts = parts

    async def start(self) -> None:
        """Start all."""
        for part in self._parts:
            await part.start()

    async def end(self) -> None:
        """End all."""
        for part in self._parts:
            await part.end()


async def test_an_activator_that_every_request_needs_is_caught(sound: Scene) -> None:
    """Prove that the drill finds requests to ready cells that miss the activator, which here says who asks as well."""
    both = Together(sound.edge.activator, sound.edge.authenticator)
    # A part starts and ends, and no more is asked of one here.
    merged = replace(sound, edge=replace(sound.edge, activator=both))  # type: ignore[arg-type]
    found = _findings(await kills.without_activator(merged))
    assert found == {Finding.UNANSWERED}


async def test_an_edge_that_lets_pass_whom_nobody_knows_is_caught() -> None:
    """Prove that the drill finds requests that pass an authenticator which is not there."""
    async with scene_on(edge_on_simulator(line=_letting_pass)) as scene:
        found = _findings(await kills.without_authenticator(scene))
    assert found == {Finding.PASSED}


@asynccontextmanager
async def _letting_pass(directory: Path) -> AsyncIterator[str]:
    """Yield the name of a configuration in which the authenticator may fail."""
    there = directory / "envoy.json"
    configuration = directory / "open.json"
    strict = there.read_text()
    configuration.write_text(strict.replace('"failure_mode_allow": false', '"failure_mode_allow": true'))
    assert configuration.read_text() != strict
    shutil.chown(configuration, group=directory.stat().st_gid)
    yield configuration.name


async def test_an_edge_that_forgets_what_was_wished_is_caught() -> None:
    """Prove that the drill finds a route that was switched while Envoy was away, and leads where it led before."""
    async with _defective("an Envoy that is away misses what is wished") as scene:
        found = _findings(await kills.without_envoy(scene))
    assert found == {Finding.FORGOTTEN}


async def test_a_switch_that_nobody_serves_is_caught() -> None:
    """Prove that the drill finds a switch that was answered as if there were an Envoy."""
    async with _defective("a switch is not waited for") as scene:
        found = _findings(await kills.without_envoy(scene))
    assert found == {Finding.MISTOLD}
