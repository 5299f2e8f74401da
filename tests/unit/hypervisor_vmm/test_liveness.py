"""When a silent guest is dead: told from a host that gives it no processor, and from a hypervisor that is late."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from cellmesh.hypervisor.vmm.liveness import QUESTIONS, Silence, Watch, usable
from cellmesh.hypervisor.vmm.processor import ProcessorTime

WITHIN = 3.0
LIMIT = QUESTIONS * WITHIN


@dataclass
class Host:
    """A host with a clock that the test moves, and one VMM."""

    now: float = 1000.0
    spent: ProcessorTime = field(default_factory=lambda: ProcessorTime(used=5.0, waited=7.0))

    def watch(self) -> Watch:
        """Begin to measure the VMM."""
        return Watch(lambda: self.spent, clock=lambda: self.now)

    def pass_time(self, seconds: float, *, used: float = 0.0, waited: float = 0.0) -> None:
        """Let time pass in which the VMM used processors, and waited for one."""
        self.now += seconds
        self.spent = ProcessorTime(used=self.spent.used + used, waited=self.spent.waited + waited)

    def questions(self, silence: Silence, *, most: int = 1000, took: float = WITHIN, **spent: float) -> str | None:
        """Ask until the guest is said to be dead, at most so often; each question takes the time of a time-out."""
        for _ in range(most):
            self.pass_time(took, **spent)
            if (dead := silence.unanswered(took=took, within=WITHIN)) is not None:
                return dead
        return None


@pytest.mark.parametrize(
    ("spent", "questions"),
    [
        pytest.param({}, QUESTIONS, id="idle and silent"),
        pytest.param({"used": 3.0}, QUESTIONS, id="busy and silent, on an idle host"),
        pytest.param({"used": 0.3, "waited": 2.7}, 10 * QUESTIONS, id="one tenth of a processor"),
        pytest.param({"used": 1.5, "waited": 1.5}, 2 * QUESTIONS, id="half of a processor"),
        pytest.param({"waited": 3.0}, 10 * QUESTIONS, id="no processor at all: not for ever"),
        pytest.param({"waited": 30.0}, 10 * QUESTIONS, id="ten threads that wait at once are not ten guests"),
        pytest.param({"took": 30.0}, QUESTIONS, id="the hypervisor is late for long, but not for ever"),
        pytest.param({"took": 6.0}, QUESTIONS, id="the hypervisor is late by as much as it waits"),
    ],
)
def test_a_guest_gets_the_time_that_it_could_use(spent: dict[str, float], questions: int) -> None:
    """Each question that it could not hear is made good, and no number of them makes a guest immortal."""
    host = Host()
    silence = Silence(host.watch(), limit=LIMIT)
    assert host.questions(silence, **spent) is not None
    assert silence.questions == questions


def test_one_question_is_not_enough() -> None:
    """A guest that misses one question, however long that took, is asked again."""
    host = Host()
    silence = Silence(host.watch(), limit=LIMIT)
    host.pass_time(1000.0)
    assert silence.unanswered(took=WITHIN, within=WITHIN) is None


def test_the_reason_says_which_it_was() -> None:
    """A guest that hangs, and a host that is overloaded, are told apart by what an operator reads."""
    host = Host()
    hangs = host.questions(Silence(host.watch(), limit=LIMIT), used=3.0)
    starves = host.questions(Silence(host.watch(), limit=LIMIT), used=0.1, waited=2.9)
    assert hangs == (
        "It was asked 3 times in 9.0 s and did not answer; "
        "its process used 9.0 s of processor time and waited 0.0 s for a processor."
    )
    assert starves is not None
    assert "the host is overloaded" in starves
    assert "asked 30 times in 90.0 s" in starves


def test_a_boot_is_given_the_time_it_could_use() -> None:
    """A boot at a tenth of a processor gets ten times its limit, a boot that burns its processor none on top."""
    host = Host()
    slow, hung = host.watch(), host.watch()
    assert hung.remaining(60.0) == 60.0
    host.pass_time(60.0, used=60.0)
    assert hung.window().is_over(60.0)
    assert hung.remaining(60.0) == 0.0
    slow = host.watch()
    host.pass_time(60.0, used=6.0, waited=54.0)
    assert slow.remaining(60.0) == pytest.approx(54.0)
    host.pass_time(540.0, used=54.0, waited=486.0)
    assert slow.window().is_over(60.0)


def test_a_thread_that_ended_takes_no_time_back() -> None:
    """The sum over a VMM's threads can fall when one ends; what passed does not."""
    host = Host()
    watch = host.watch()
    host.pass_time(5.0, used=-4.0, waited=-6.0)
    assert watch.window().usable == 5.0


class Starving:
    """A process that waits for a processor `share` of all time, and an event for the third look at it."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._looks = 0
        self.looked_at = asyncio.Event()

    def watch(self) -> Watch:
        """Begin to measure it."""
        return Watch(self._measure, clock=asyncio.get_running_loop().time)

    def _measure(self) -> ProcessorTime:
        self._looks += 1
        if self._looks == 3:
            self.looked_at.set()
        return ProcessorTime(used=0.0, waited=self._share * asyncio.get_running_loop().time())


@pytest.mark.asyncio
async def test_a_time_limit_moves_while_a_process_waits_for_a_processor() -> None:
    """What waits all the time is looked at again, and may end meanwhile; the control, what waits never, is given up."""
    starving, idle = Starving(1.0), Starving(0.0)
    async with usable(1.0, starving.watch()):
        await starving.looked_at.wait()
    with pytest.raises(TimeoutError):
        async with usable(1.0, idle.watch()):
            await idle.looked_at.wait()


@pytest.mark.asyncio
async def test_no_process_waits_for_ever() -> None:
    """An overloaded host is no excuse after ten times the limit."""
    with pytest.raises(TimeoutError):
        async with usable(0.1, Starving(1.0).watch()):
            await asyncio.Event().wait()


@pytest.mark.asyncio
async def test_what_is_done_in_time_leaves_no_limit_behind() -> None:
    """The limit ends with what it is for, also when that fails."""
    with pytest.raises(KeyError):
        async with usable(0.05, Starving(0.0).watch()):
            raise KeyError
    async with usable(0.05, Starving(0.0).watch()):
        pass
    await asyncio.sleep(0.2)
