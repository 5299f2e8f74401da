"""What agents say: which Hello counts, and which reports."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
import pytest_asyncio

from cellmesh.hypervisor.domain.container import Claim, ContainerState, ContainerStatus
from cellmesh.hypervisor.domain.errors import GuestRebooted, TooManyReports, VmNotStarting, WrongEpoch
from cellmesh.hypervisor.domain.event import AgentMisbehaved
from cellmesh.hypervisor.domain.vm import Vm, VmState
from cellmesh.hypervisor.lifecycle.agents import Agents, Report
from cellmesh.hypervisor.lifecycle.sessions import Session, Sessions
from cellmesh.hypervisor.store import Store
from cellmesh.mesh.errors import InvalidRequest
from support.vms import make_container, make_vm

pytestmark = pytest.mark.asyncio
RUNS = ContainerStatus(state=ContainerState.RUNNING)


class Host:
    """A host with one VM that is being started, and one container that its agent was asked to start."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = 0.0
        self.sessions = Sessions(clock=lambda: self.now)
        self.vm = make_vm(state=VmState.STARTING, epoch=3, recycle_wished=1, recycle_started=1)
        self.agents = Agents(
            store=store,
            sessions=self.sessions,
            heartbeat_interval=timedelta(seconds=5),
            failpoint=lambda _: self.silence_when_running.append(self.session.silence()),
        )
        self.silence_when_running: list[float] = []

    @property
    def session(self) -> Session:
        """Return the VM's session."""
        session = self.sessions.get(self.vm.vm_id)
        assert session is not None
        return session

    async def begin(self) -> None:
        """Put the VM into the store and begin its session."""
        async with self.store.transaction() as tx:
            await tx.add_vm(self.vm)
            await tx.save_container(make_container(self.vm.vm_id, generation=2, epoch=3), None)
        self.sessions.begin(self.vm.vm_id, self.vm.epoch)

    async def hello(self, boot_id: str = "boot") -> object:
        """Say Hello."""
        return await self.agents.hello(self.vm.vm_id, boot_id=boot_id, protocol_versions=[1])

    async def report(self, sequence: int, *claims: Claim, **fields: object) -> int:
        """Send a report."""
        report = Report(vm_id=self.vm.vm_id, epoch=self.vm.epoch, sequence=sequence, claims=claims)
        return await self.agents.report(self.vm.vm_id, replace(report, **fields))

    async def stored(self) -> Vm:
        """Return the VM as stored."""
        async with self.store.reading() as reading:
            vm = await reading.vm(self.vm.vm_id)
        assert vm is not None
        return vm

    async def status(self) -> ContainerStatus:
        """Return the container's status as stored."""
        async with self.store.reading() as reading:
            container = await reading.container(self.vm.vm_id, "app")
        assert container is not None
        return container.status

    async def misbehaviour(self) -> list[tuple[str, int]]:
        """Return kind and count of every event of misbehaviour."""
        async with self.store.reading() as reading:
            entries = await reading.entries(after=0, limit=1000)
        return [(e.payload.kind, e.payload.count) for e in entries if isinstance(e.payload, AgentMisbehaved)]


@pytest_asyncio.fixture
async def host(store: Store) -> AsyncIterator[Host]:
    """Give the host."""
    it = Host(store)
    await it.begin()
    yield it


async def test_the_first_hello_makes_the_vm_run(host: Host) -> None:
    """Hello commits RUNNING and is answered with the epoch and whether layers go; a recycle is done with it."""
    welcome = await host.agents.hello(host.vm.vm_id, boot_id="boot", protocol_versions=[2, 1])
    vm = await host.stored()
    assert (welcome.epoch, welcome.discard_layers) == (3, True)
    assert vm.state is VmState.RUNNING
    assert vm.recycle_done == 1


async def test_the_same_boot_gets_the_same_answer(host: Host) -> None:
    """A repeated Hello changes nothing and is told again to discard, as the first answer may have been lost."""
    first = await host.agents.hello(host.vm.vm_id, boot_id="boot", protocol_versions=[1])
    revision = (await host.stored()).revision
    again = await host.agents.hello(host.vm.vm_id, boot_id="boot", protocol_versions=[1])
    assert replace(again, time=first.time) == first
    assert (await host.stored()).revision == revision


async def test_another_boot_of_the_same_epoch_is_a_reboot(host: Host) -> None:
    """A second boot id is refused and the keeper is told."""
    await host.hello("one")
    with pytest.raises(GuestRebooted):
        await host.hello("two")
    session = host.sessions.get(host.vm.vm_id)
    assert session is not None
    assert session.rebooted


async def test_nobody_says_hello_for_a_vm_that_is_not_started(host: Host) -> None:
    """Without a session, or in another epoch than the store's, Hello is refused."""
    host.sessions.end(host.vm.vm_id)
    with pytest.raises(VmNotStarting):
        await host.hello()
    host.sessions.begin(host.vm.vm_id, 2)
    with pytest.raises(VmNotStarting):
        await host.hello()
    with pytest.raises(VmNotStarting):
        await host.agents.hello(str(uuid.uuid4()), boot_id="boot", protocol_versions=[1])


async def test_an_agent_of_another_contract_is_refused(host: Host) -> None:
    """An agent that does not speak our version stays STARTING."""
    with pytest.raises(InvalidRequest):
        await host.agents.hello(host.vm.vm_id, boot_id="boot", protocol_versions=[2])
    assert (await host.stored()).state is VmState.STARTING


async def test_a_report_is_stored_for_the_generation_that_was_started(host: Host) -> None:
    """Only claims of the present generation are stored; older ones are stale, later or unknown ones misbehaviour."""
    await host.hello()
    await host.report(1, Claim(name="app", generation=1, status=RUNS))
    assert (await host.status()).state is ContainerState.PENDING
    await host.report(2, Claim(name="app", generation=9, status=RUNS))
    await host.report(3, Claim(name="nobody", generation=1, status=RUNS))
    assert (await host.status()).state is ContainerState.PENDING
    assert await host.misbehaviour() == [("UNKNOWN_CONTAINER", 1)]
    await host.report(4, Claim(name="app", generation=2, status=RUNS))
    assert (await host.status()).state is ContainerState.RUNNING


async def test_a_sequence_that_was_seen_is_answered_and_ignored(host: Host) -> None:
    """A repeated report changes nothing, whatever it holds."""
    await host.hello()
    assert await host.report(1, Claim(name="app", generation=2, status=RUNS)) == 1
    failed = replace(RUNS, state=ContainerState.FAILED)
    assert await host.report(1, Claim(name="app", generation=2, status=failed)) == 1
    assert (await host.status()).state is ContainerState.RUNNING


async def test_a_report_for_another_vm_or_epoch_is_refused_and_told(host: Host) -> None:
    """A guest can speak for nobody but its own boot."""
    await host.hello()
    with pytest.raises(WrongEpoch):
        await host.report(1, vm_id=str(uuid.uuid4()))
    with pytest.raises(WrongEpoch):
        await host.report(1, epoch=2)
    assert await host.misbehaviour() == [("WRONG_VM_ID", 1), ("OLD_EPOCH", 1)]


async def test_a_flood_is_cut_off_and_costs_one_event(host: Host) -> None:
    """A guest that reports without pause is told to wait, and the log grows by one event, not by its messages."""
    await host.hello()
    outcomes = await asyncio.gather(*(host.report(sequence) for sequence in range(1, 301)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, TooManyReports)]
    assert len(refused) == 200
    assert all(error.retry_after is not None for error in refused)
    assert await host.misbehaviour() == [("TOO_MANY_REPORTS", 1)]
    host.now += 1.0
    later = await asyncio.gather(*(host.report(sequence) for sequence in range(101, 151)), return_exceptions=True)
    assert sum(isinstance(outcome, TooManyReports) for outcome in later) == 30


async def test_counts_of_what_was_ignored_are_not_lost() -> None:
    """Events of one kind are at least ten seconds apart, and the next one counts all between."""
    now = 0.0
    session = Session("vm", 1, clock=lambda: now)
    assert session.misbehaved("K", "first") == AgentMisbehaved(kind="K", message="first", count=1)
    assert [session.misbehaved("K", "more") for _ in range(5)] == [None] * 5
    now = 10.0
    assert session.misbehaved("K", "last") == AgentMisbehaved(kind="K", message="last", count=6)


async def test_a_heartbeat_writes_nothing(host: Host) -> None:
    """A report that repeats what is known leaves the log as it is, and still proves that the guest lives."""
    await host.hello()
    claim = Claim(name="app", generation=2, status=RUNS)
    await host.report(1, claim)
    async with host.store.reading() as reading:
        before = await reading.last_sequence()
    for sequence in range(2, 50):
        await host.report(sequence, claim)
    async with host.store.reading() as reading:
        assert await reading.last_sequence() == before


async def test_a_slow_boot_is_no_silence(host: Host) -> None:
    """Silence counts from Hello: when RUNNING is committed, the minute of the boot is forgotten."""
    host.session.heard -= 60.0
    await host.hello()
    assert [silence < 60.0 for silence in host.silence_when_running] == [True]
