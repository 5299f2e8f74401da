"""The hypervisor is asked once for all who wait, and no user waits with more requests than one may."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from cellmesh.hypervisor.activator.activations import Activations
from cellmesh.hypervisor.activator.asked import RouteKey
from cellmesh.hypervisor.activator.verdict import Verdict
from cellmesh.mesh.errors import Code, DownstreamUnavailable

_PATIENCE = 30.0


def _route(prefix: str = "/", user: int = 1) -> RouteKey:
    return RouteKey(user_id=f"00000000-0000-4000-8000-{user:012d}", prefix=prefix)


async def _at_once() -> None:
    return


@dataclass(slots=True)
class Hypervisor:
    """Answers with the number of the question, after `behave`."""

    behave: Callable[[], Awaitable[object]] = _at_once
    asked: list[RouteKey] = field(default_factory=list)
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, route: RouteKey) -> Verdict:
        """Answer once."""
        self.asked.append(route)
        self.entered.set()
        number = len(self.asked)
        await self.behave()
        return Verdict(code=Code.UNAVAILABLE, reason=f"ANSWER_{number}", message="Wait.", retry_after=1)


async def _settled() -> None:
    """Let every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_requests_of_a_route_are_one_call() -> None:
    """Whoever comes while the hypervisor is being asked gets the same answer; another route is another question."""
    go = asyncio.Event()
    hypervisor = Hypervisor(go.wait)
    async with asyncio.timeout(_PATIENCE), Activations(hypervisor.ask) as activations, asyncio.TaskGroup() as tasks:
        first = [tasks.create_task(activations.verdict(_route())) for _ in range(50)]
        other = tasks.create_task(activations.verdict(_route("/dev/")))
        foreign = tasks.create_task(activations.verdict(_route(user=2)))
        await _settled()
        go.set()
    assert hypervisor.asked == [_route(), _route("/dev/"), _route(user=2)]
    assert {task.result().reason for task in first} == {"ANSWER_1"}
    assert (other.result().reason, foreign.result().reason) == ("ANSWER_2", "ANSWER_3")


@pytest.mark.asyncio
async def test_answer_holds_for_a_blink() -> None:
    """Within a blink nothing is asked again; after it the next request asks anew, and what is old is forgotten."""
    now = [0.0]
    hypervisor = Hypervisor()
    async with Activations(hypervisor.ask, clock=lambda: now[0], blink=0.25) as activations:
        assert (await activations.verdict(_route())).reason == "ANSWER_1"
        now[0] = 0.2
        assert (await activations.verdict(_route())).reason == "ANSWER_1"
        assert (await activations.verdict(_route(user=2))).reason == "ANSWER_2"
        now[0] = 0.25
        assert (await activations.verdict(_route())).reason == "ANSWER_3"
        assert (await activations.verdict(_route(user=2))).reason == "ANSWER_2"
        now[0] = 10.0
        await activations.verdict(_route(user=3))
        assert list(activations._said) == [_route(user=3)]


@pytest.mark.asyncio
async def test_one_who_hangs_up_does_not_end_the_wait_of_others() -> None:
    """The call goes on for who is left, and even for nobody: its VM was asked for."""
    go = asyncio.Event()
    hypervisor = Hypervisor(go.wait)
    async with asyncio.timeout(_PATIENCE), Activations(hypervisor.ask) as activations:
        first = asyncio.create_task(activations.verdict(_route()))
        await hypervisor.entered.wait()
        second = asyncio.create_task(activations.verdict(_route()))
        await _settled()
        first.cancel()
        await _settled()
        go.set()
        assert (await second).reason == "ANSWER_1"
        with pytest.raises(asyncio.CancelledError):
            await first
    assert len(hypervisor.asked) == 1


@pytest.mark.asyncio
async def test_requests_of_one_user_that_wait_are_bounded() -> None:
    """Beyond the bound a user is refused at once, others are not, and room comes back."""
    go = asyncio.Event()
    hypervisor = Hypervisor(go.wait)
    async with asyncio.timeout(_PATIENCE), Activations(hypervisor.ask, waiting_per_user=3) as activations:
        waiting = [asyncio.create_task(activations.verdict(_route(prefix))) for prefix in ("/", "/dev/", "/_/a/")]
        await _settled()
        refused = await activations.verdict(_route("/_/b/"))
        assert (refused.status, refused.reason, refused.retry_after) == (429, "TOO_MANY_WAITING", 2)
        other = asyncio.create_task(activations.verdict(_route(user=2)))
        await _settled()
        assert len(hypervisor.asked) == 4
        go.set()
        await asyncio.gather(*waiting, other)
        assert (await activations.verdict(_route("/_/b/"))).reason == "ANSWER_5"
        assert activations._waiting == {}


@pytest.mark.asyncio
async def test_hypervisor_that_is_away_is_an_answer() -> None:
    """An error of the call is told to all who wait, and holds for a blink too, so that nobody knocks in a loop."""

    async def fail() -> None:
        raise DownstreamUnavailable("gone")

    hypervisor = Hypervisor(fail)
    async with Activations(hypervisor.ask, clock=lambda: 0.0) as activations:
        answers = await asyncio.gather(*(activations.verdict(_route()) for _ in range(5)))
        assert {answer.reason for answer in answers} == {"HYPERVISOR_UNAVAILABLE"}
        await activations.verdict(_route())
    assert len(hypervisor.asked) == 1


@pytest.mark.asyncio
async def test_fault_of_ours_fails_the_requests_it_is_about() -> None:
    """What nobody expected fails those who wait for it, is not remembered, and leaves all others alone."""
    faults = [RuntimeError("unexpected")]

    async def fail() -> None:
        if faults:
            raise faults.pop()

    hypervisor = Hypervisor(fail)
    async with asyncio.timeout(_PATIENCE), Activations(hypervisor.ask) as activations:
        answers = await asyncio.gather(*(activations.verdict(_route()) for _ in range(3)), return_exceptions=True)
        assert [str(answer) for answer in answers] == ["unexpected"] * 3
        assert (await activations.verdict(_route())).reason == "ANSWER_2"
        assert (activations._waiting, activations._running) == ({}, {})
