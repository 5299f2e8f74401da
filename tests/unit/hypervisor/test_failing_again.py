"""A VM that dies again and again ends FAILED with its reason, however long its runs were below ten minutes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from cellmesh.hypervisor.domain.vm import Reason, Vm, VmState
from cellmesh.hypervisor.lifecycle.admission import Admission
from cellmesh.hypervisor.reconciler import outcomes
from cellmesh.hypervisor.reconciler.world import Timing
from cellmesh.hypervisor.store import Store
from support.vms import NOW, make_vm

SECOND = timedelta(seconds=1)
WORDS = "The guest fell silent."
pytestmark = pytest.mark.asyncio


class Node:
    """A node with one VM, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = NOW
        self.vm = make_vm()
        self.world: Any = None

    async def open(self, store: Store) -> None:
        """Put the VM into the store."""
        self.world = SimpleNamespace(
            store=store,
            timing=Timing(boot_timeout=60 * SECOND, heartbeat_interval=5 * SECOND),
            admission=Admission(max_vms=10, memory_capacity_bytes=1 << 40),
            jitter=lambda: 0.5,
        )
        async with store.transaction() as tx:
            await tx.add_vm(self.vm)

    async def run(self, lasts: timedelta) -> Vm:
        """Start the VM, let it run for so long, and return it as it is after its death."""
        starting = await outcomes.begin_epoch(self.world, self.vm.vm_id)
        assert starting is not None
        async with self.world.store.transaction() as tx:
            await tx.save_vm(replace(starting.move(VmState.RUNNING), running_time=tx.now), starting)
        self.now += lasts
        await outcomes.fail(self.world, self.vm.vm_id, starting.epoch, Reason.GUEST_SILENT, WORDS)
        self.now += timedelta(minutes=1)  # its wait before the next try is over
        vm = self.world.store.mirror.vm(self.vm.vm_id)
        assert isinstance(vm, Vm)
        return vm


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """Give a node."""
    made = Node()
    async with Store.opened(tmp_path / "hypervisor.db", clock=lambda: made.now) as store:
        await made.open(store)
        yield made


@pytest.mark.parametrize("lasts", [SECOND, 61 * SECOND, 599 * SECOND])
async def test_short_runs_make_up_for_nothing(node: Node, lasts: timedelta) -> None:
    """It is restarted as often as its policy says, each time with why; then it is FAILED with the same reason."""
    restarts = node.vm.spec.restart_policy.max_restarts
    for number in range(1, restarts + 1):
        vm = await node.run(lasts)
        assert (vm.state, vm.reason, vm.restart_count) == (VmState.BACKOFF, Reason.GUEST_SILENT, number)
    vm = await node.run(lasts)
    assert (vm.state, vm.reason) == (VmState.FAILED, Reason.GUEST_SILENT)
    assert vm.message.startswith(f"{WORDS} It was restarted {restarts} times in a row")


async def test_long_runs_make_up_for_restarts(node: Node) -> None:
    """The control: what runs for ten minutes each time is restarted for ever."""
    for _ in range(20):
        vm = await node.run(600 * SECOND)
        assert (vm.state, vm.reason, vm.restart_count) == (VmState.BACKOFF, Reason.GUEST_SILENT, 1)


async def test_were_a_minute_enough_it_would_never_end(node: Node) -> None:
    """The control of the first: where each minute makes up for a restart, runs of 61 s go on for ever."""
    node.world.timing = replace(node.world.timing, proven=60 * SECOND)
    for _ in range(20):
        assert (await node.run(61 * SECOND)).state is VmState.BACKOFF
