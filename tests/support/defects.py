"""Faults planted into a hypervisor, each with the invariant that must catch it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellmesh.hypervisor.domain.event import RouteSwitched, VmStateChanged
from cellmesh.hypervisor.domain.vm import Vm, VmState
from cellmesh.hypervisor.store import Transaction
from cellmesh.hypervisor.vmm import bridges
from cellmesh.hypervisor.vmm.launch import Launcher
from support.crowd import CROWD_DEFECTS
from support.edge_defects import EDGE_DEFECTS
from support.invariants import Invariant


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One way to be wrong."""

    plant: Callable[[], None]
    """Makes this process wrong."""
    breaks: Invariant


def plant(name: str) -> None:
    """Plant a defect into this process; an empty name is none."""
    if name:
        planted = {**{each: defect.plant for each, defect in DEFECTS.items()}, **EDGE_DEFECTS, **CROWD_DEFECTS}
        planted[name]()


def _launch_twice() -> None:
    start = Launcher._start_vmm

    def twice(self: Launcher, *args: Any) -> None:
        start(self, *args)
        start(self, *args)

    Launcher._start_vmm = twice  # type: ignore[method-assign]


def _drop_an_event() -> None:
    log = Transaction.log

    async def forgetful(self: Transaction, subject: Any, payload: Any, **more: Any) -> None:
        dropped = isinstance(payload, VmStateChanged) and payload.target is VmState.RUNNING
        await log(self, subject, None if dropped else payload, **more)

    Transaction.log = forgetful  # type: ignore[method-assign]


def _forget_answers() -> None:
    def forget(*_: Any, **__: Any) -> None:
        """Store nothing."""

    Transaction._put = forget  # type: ignore[method-assign]


def _keep_the_epoch() -> None:
    save = Transaction.save_vm

    async def same_epoch(self: Transaction, vm: Vm, before: Vm) -> Vm:
        return await save(self, replace(vm, epoch=max(before.epoch, 1)), before)

    Transaction.save_vm = same_epoch  # type: ignore[method-assign]


def _leave_the_bridge() -> None:
    async def leave(_: Path) -> None:
        await asyncio.sleep(0)

    bridges.end_all = leave


def _store_without_event() -> None:
    log_vm = Transaction._log_vm

    async def silent(self: Transaction, vm: Vm, before: Vm | None) -> None:
        if before is None or vm.desired is before.desired:
            await log_vm(self, vm, before)
        else:
            self.stored_vms[vm.vm_id] = vm
            self.touched.add(vm.vm_id)

    Transaction._log_vm = silent  # type: ignore[method-assign]


def _switch_without_event() -> None:
    log = Transaction.log

    async def forgetful(self: Transaction, subject: Any, payload: Any, **more: Any) -> None:
        await log(self, subject, None if isinstance(payload, RouteSwitched) else payload, **more)

    Transaction.log = forgetful  # type: ignore[method-assign]


DEFECTS: dict[str, Defect] = {
    "a VMM is launched twice": Defect(plant=_launch_twice, breaks=Invariant.ONE_VMM),
    "an event is dropped": Defect(plant=_drop_an_event, breaks=Invariant.EVENTS),
    "answers are not stored": Defect(plant=_forget_answers, breaks=Invariant.ANSWERS),
    "a start keeps its epoch": Defect(plant=_keep_the_epoch, breaks=Invariant.EPOCHS),
    "bridges are left behind": Defect(plant=_leave_the_bridge, breaks=Invariant.NOTHING_LEFT),
    "a wish is stored without its entry": Defect(plant=_store_without_event, breaks=Invariant.ENTRIES),
    "a switch is stored without its event": Defect(plant=_switch_without_event, breaks=Invariant.ROUTES),
}
