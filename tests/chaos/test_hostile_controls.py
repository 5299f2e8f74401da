"""The controls of the drills with hostile guests: what they look for is found when it is there."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest

from cellmesh.api.common.v1 import health_pb2
from cellmesh.api.hypervisor.v1 import vm_service_pb2
from cellmesh.hypervisor.lifecycle.sessions import Session
from cellmesh.hypervisor.vmm import liveness
from cellmesh.hypervisor.vmm.processor import ProcessorTime
from cellmesh.mesh import call
from chaos import test_hostile_answers as answers
from chaos import test_hostile_reports as reports
from support import hostile_guest as hostile
from support.arena import Arena, fighting
from support.node import SECONDS, node_here
from support.witness import MEMORY_BYTES, Witness, watching

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="module")]


async def test_an_ill_neighbour_is_seen(arena: Arena) -> None:
    """A neighbour whose agent is deaf is not SERVING, and the witness says so."""
    async with arena.target() as target:
        target.guest.wire = hostile.deaf
        target.guest.cut()
        async with watching(os.getpid(), arena.it.vms, target.vm.vm_id) as witness, asyncio.timeout(SECONDS):
            while not any("not well" in fault for fault in witness.faults()):  # noqa: ASYNC110  # of all it sees
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("overloaded", [True, False])
async def test_a_neighbour_is_not_ill_for_an_overloaded_host(monkeypatch: pytest.MonkeyPatch, overloaded: bool) -> None:
    """What comes late counts unless those who had to answer waited for a processor meanwhile."""

    class Late:
        """A node that says three times that the neighbour is not well."""

        answers = 0

        async def CheckVmHealth(self, request: object, **_: object) -> vm_service_pb2.CheckVmHealthResponse:
            self.answers += 1
            await asyncio.sleep(0.01)
            states = health_pb2.HealthStatus
            status = states.HEALTH_STATUS_NOT_SERVING if self.answers <= 3 else states.HEALTH_STATUS_SERVING
            return vm_service_pb2.CheckVmHealthResponse(status=status)

    def measure(pid: int) -> ProcessorTime:
        return ProcessorTime(used=0.0, waited=time.monotonic() if overloaded else 0.0)

    monkeypatch.setattr(liveness, "processor_time", measure)
    node: Any = Late()
    async with watching(os.getpid(), node, "neighbour") as witness, asyncio.timeout(SECONDS):
        while node.answers < 4:  # noqa: ASYNC110  # of all it says
            await asyncio.sleep(0.01)
    assert (witness.faults() == []) == overloaded
    assert witness.checks > 0


async def test_a_process_that_grows_is_seen(arena: Arena) -> None:
    """A process that takes more memory than an attack may cost is told of; this one does."""
    async with watching(os.getpid(), arena.it.vms, arena.neighbour) as witness:
        taken = os.urandom(MEMORY_BYTES + (64 << 20))
    assert any("grew" in fault for fault in witness.faults())
    assert taken


async def test_a_witness_that_saw_nothing_says_so() -> None:
    """A drill during which nobody looked proves nothing."""
    assert Witness(memory_before=0).faults() == ["the neighbour's health was never asked"]


@pytest.mark.parametrize("name", ["negative time", "output on no stream"])
async def test_a_hypervisor_that_checks_no_answer_is_caught(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The planted defect: with the contract's rules off, the drill finds that a lie was believed or not understood."""
    monkeypatch.setattr(call, "check_answer", lambda *_: None)
    ask, lie, reasons = answers.LIES[name]
    async with fighting(node_here) as tampered, tampered.target() as target:
        target.guest.lies[answers.METHODS[ask]] = lie
        with pytest.raises(AssertionError):
            answers.check(await answers.refusal(ask, tampered, target, reasons), reasons)


async def test_a_hypervisor_that_counts_no_reports_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted defect: with the allowance off, a thousand reports at once are all taken."""
    monkeypatch.setattr(Session, "admits_report", lambda _: True)
    async with fighting(node_here) as tampered, tampered.target() as target:
        frames = [reports.report(target, sequence=reports.FIRST + n) for n in range(1000)]
        assert (await reports.say(target, *frames)).code == "OK"
