"""Faults planted into a hypervisor, each of which some invariant must catch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellmesh.hypervisor.domain.event import VmStateChanged
from cellmesh.hypervisor.domain.vm import Vm, VmState
from cellmesh.hypervisor.store import Transaction
from cellmesh.hypervisor.vmm import bridges
from cellmesh.hypervisor.vmm.launch import Launcher


def plant(name: str) -> None:
    """Plant a defect into this process; an empty name is none."""
    if name:
        DEFECTS[name]()


def _launch_twice() -> None:
    start = Launcher._start_vmm

    def twice(self: Launcher, *args: Any) -> None:
        start(self, *args)
        start(self, *args)

    Launcher._start_vmm = twice  # type: ignore[method-assign]


def _drop_an_event() -> None:
    log = Transaction.log

    async def forgetful(self: Transaction, subject: Any, payload: Any, **more: Any) -> None:
        if not (isinstance(payload, VmStateChanged) and payload.target is VmState.RUNNING):
            await log(self, subject, payload, **more)

    Transaction.log = forgetful  # type: ignore[method-assign]


def _forget_answers() -> None:
    async def forget(*_: Any) -> None:
        await asyncio.sleep(0)

    Transaction.put_answer = forget  # type: ignore[method-assign]


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


DEFECTS: dict[str, Callable[[], None]] = {
    "a VMM is launched twice": _launch_twice,
    "an event is dropped": _drop_an_event,
    "answers are not stored": _forget_answers,
    "a start keeps its epoch": _keep_the_epoch,
    "bridges are left behind": _leave_the_bridge,
    "a wish is stored without its entry": _store_without_event,
}
