"""What is stored of a container that is being started: the newest its agent said of it, however it came."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import SimpleNamespace

import pytest

from cellmesh.hypervisor.domain.container import Claim, Container, ContainerState, ContainerStatus
from cellmesh.hypervisor.domain.errors import ContainerStartFailed
from cellmesh.hypervisor.domain.vm import VmState
from cellmesh.hypervisor.lifecycle.agents import Agents, Report
from cellmesh.hypervisor.lifecycle.attempts import Attempts
from cellmesh.hypervisor.lifecycle.containers import Containers
from cellmesh.hypervisor.lifecycle.sessions import Sessions
from cellmesh.hypervisor.reconciler.containers import ContainerReconciler
from cellmesh.hypervisor.reconciler.images import ImageDisks
from cellmesh.hypervisor.store import Store
from support.vms import NOW, make_container, make_vm

pytestmark = pytest.mark.asyncio

RUNS = ContainerStatus(state=ContainerState.RUNNING)
ENDED = ContainerStatus(state=ContainerState.STOPPED, reason="EXITED", exit_code=3)


class Guest:
    """An agent whose reports overtake its answer to a start."""

    def __init__(self, store: Store, *reports: ContainerStatus) -> None:
        self.vm = make_vm(state=VmState.RUNNING, epoch=3)
        self.reports = reports
        sessions = Sessions()
        sessions.begin(self.vm.vm_id, self.vm.epoch)
        self.agents = Agents(
            store=store, sessions=sessions, heartbeat_interval=timedelta(seconds=5), failpoint=lambda _: None
        )

    async def start_container(self, epoch: int, container: Container) -> ContainerStatus:
        """Answer that it runs, after all reports."""
        for sequence, status in enumerate(self.reports, start=1):
            claim = Claim(name=container.name, generation=container.generation, status=status)
            report = Report(vm_id=self.vm.vm_id, epoch=epoch, sequence=sequence, claims=(claim,))
            assert await self.agents.report(self.vm.vm_id, report) == sequence
        return RUNS


class Ingress:
    """Sockets that are there already."""

    async def ensure(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("reports", "wanted"),
    [
        ((), RUNS),
        ((ContainerStatus(state=ContainerState.STARTING),), RUNS),
        ((RUNS, ENDED), ENDED),
        ((ENDED,), ENDED),
    ],
)
async def test_an_answer_undoes_no_report(
    store: Store, reports: tuple[ContainerStatus, ...], wanted: ContainerStatus
) -> None:
    """The answer to a start counts while nothing newer was reported; an end that overtook it stays the end."""
    guest = Guest(store, *reports)
    container = make_container(guest.vm.vm_id)
    async with store.transaction() as tx:
        await tx.add_vm(guest.vm)
        await tx.save_container(container, None)
    world = SimpleNamespace(
        store=store, guests=guest, attempts=Attempts(store.changes), failpoint=lambda _: None, vmm=None, images=None
    )
    handle = SimpleNamespace(vm_id=guest.vm.vm_id, epoch=guest.vm.epoch)
    async with asyncio.TaskGroup() as tasks:
        reconciler = ContainerReconciler(
            world, tasks, handle, Ingress(), images=ImageDisks(world, tasks, handle, attached={container.spec.image})
        )
        reconciler.reconcile([container])
    async with store.reading() as reading:
        stored = await reading.container(guest.vm.vm_id, container.name)
    assert stored is not None
    assert stored.status == wanted


async def test_a_container_that_ran_was_started(store: Store) -> None:
    """Who waits for a start hears of a failure only if it never ran, however late he looks."""
    containers = Containers(
        store=store, images=None, attempts=Attempts(store.changes), guests=None, failpoint=lambda _: None
    )
    vm = make_vm(state=VmState.RUNNING, epoch=3)
    ran = ContainerStatus(state=ContainerState.FAILED, restart_count=2, start_time=NOW)
    never = ContainerStatus(state=ContainerState.FAILED, reason="CONTAINER_START_FAILED")
    async with store.transaction() as tx:
        await tx.add_vm(vm)
        for slot, (name, status) in enumerate((("ran", ran), ("never", never))):
            await tx.save_container(make_container(vm.vm_id, name, epoch=3, status=status, ingress_slot=slot), None)
    assert (await containers.started(vm.vm_id, "ran", 1)).status == ran
    with pytest.raises(ContainerStartFailed):
        await containers.started(vm.vm_id, "never", 1)
