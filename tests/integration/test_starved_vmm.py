"""A VMM or bridge that waits for a processor is waited for; one that has its processor and hangs is given up."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from cellmesh.api.hypervisor.v1 import vm_pb2
from cellmesh.hypervisor.bridge.client import command
from cellmesh.hypervisor.reconciler import vm as keeper
from cellmesh.hypervisor.vmm import (
    Budgets,
    Cell,
    Handle,
    Rung,
    Running,
    StopUnfinished,
    Vmm,
    VmmError,
    VmState,
    api,
    bridges,
    launch,
    liveness,
    process,
    sweep,
)
from cellmesh.hypervisor.vmm.processor import ProcessorTime
from simulator import Fault, FaultKind, Hub
from support.node import SECONDS, node, node_here, short_directory

VM = "feedc0de0123-4cde-8f01-234567890abc"
LIMIT = 1.0
pytestmark = pytest.mark.asyncio


class Host:
    """What the hypervisor measures of every process: that it waits for a processor all the time, or never."""

    def __init__(self, *, starved: bool) -> None:
        self._starved = starved
        self._looks = 0

    def measure(self, pid: int) -> ProcessorTime:
        """Return the processor time of a process."""
        self._looks += 1
        return ProcessorTime(used=0.0, waited=time.monotonic() if self._starved else 0.0)

    async def looks_again(self, times: int = 3) -> None:
        """Wait until the hypervisor has looked several times more, which it does after each limit."""
        until = self._looks + times
        async with asyncio.timeout(SECONDS):
            while self._looks < until:  # noqa: ASYNC110  # a measurement has no event
                await asyncio.sleep(0.01)


def on_host(monkeypatch: pytest.MonkeyPatch, *, starved: bool) -> Host:
    """Give every VMM and bridge a host that has no processor for them, or has; all limits are a second."""
    host = Host(starved=starved)
    monkeypatch.setattr(liveness, "processor_time", host.measure)
    for module, name in ((api, "_CHANGE"), (launch, "_API_SECONDS"), (bridges, "_START_SECONDS")):
        monkeypatch.setattr(module, name, LIMIT)
    for module in (api, launch):
        monkeypatch.setattr(module, "QUICK", LIMIT / 2)
    monkeypatch.setattr(keeper, "_ADOPTION_SECONDS", LIMIT)
    monkeypatch.setattr(keeper, "_ADOPTION_PAUSE", 0.1)
    return host


class Stage:
    """A VMM's place on a node, and what becomes of it."""

    def __init__(self, root: Path, hub: Hub) -> None:
        self.hub = hub
        self.vmm = Vmm(
            binary=hub.binary,
            run_dir=root / "run",
            state_dir=root / "state",
            uid_base=None,
            failpoint=lambda _: None,
        )
        kernel = root / "kernel"
        kernel.write_bytes(bytes(0x1FE) + b"\x55\xaa" + bytes(2) + b"HdrS" + bytes(4096))
        self.cell = Cell(
            vm_id=VM,
            epoch=1,
            vcpus=1,
            memory_bytes=128 << 20,
            kernel=kernel,
            initramfs=kernel,
            cmdline="",
            disks=(),
        )

    async def launch(self) -> Handle:
        """Start the VM."""
        await self.vmm.prepare(VM)
        return await self.vmm.launch(self.cell)


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[Stage]:
    """Give a place for one VM; nothing of it runs afterwards."""
    with short_directory() as root:
        async with Hub(root / "hub") as hub:
            made = Stage(root, hub)
            yield made
            directory = made.vmm.directory(VM)
            for pid in sweep.vmm_processes(directory):
                process.send_signal(pid, process.start_ticks(pid) or 0, signal.SIGKILL)
                await process.wait(pid, process.start_ticks(pid) or 0)
                process.reap(pid)
            await made.vmm.destroy(VM)


@pytest.mark.parametrize("action", ["vmm.ping", "vm.create", "vm.boot"])
async def test_a_starved_vmm_is_started(stage: Stage, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """It answers long after its limit, and its VM runs."""
    host = on_host(monkeypatch, starved=True)
    hanging = stage.hub.faults.add(Fault(point=action, kind=FaultKind.HANG, times=1000))
    starting = asyncio.create_task(stage.launch())
    await hanging.met.wait()
    await host.looks_again()
    assert not starting.done()
    hanging.release()
    handle = await starting
    monkeypatch.undo()
    assert (await stage.vmm.probe(handle)).state is VmState.RUNNING


@pytest.mark.parametrize("action", ["vmm.ping", "vm.create", "vm.boot"])
async def test_a_vmm_that_hangs_is_given_up(stage: Stage, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """The control: it had its processor all the time."""
    on_host(monkeypatch, starved=False)
    stage.hub.faults.add(Fault(point=action, kind=FaultKind.HANG, times=1000))
    with pytest.raises(VmmError):
        await stage.launch()


@pytest.mark.parametrize("starved", [True, False])
async def test_a_starved_guest_gets_its_time_to_power_off(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, starved: bool
) -> None:
    """The next rung of the ladder waits for a VMM that waits; the control outlives the power button."""
    handle = await stage.launch()
    host = on_host(monkeypatch, starved=starved)
    os.kill(handle.pid, signal.SIGSTOP)
    stopping = asyncio.create_task(stage.vmm.stop(handle, until=Rung.POWER_BUTTON, budgets=Budgets(power_button=LIMIT)))
    if starved:
        await host.looks_again()
        assert not stopping.done()
        os.kill(handle.pid, signal.SIGCONT)
        await stopping
    else:
        with pytest.raises(StopUnfinished):
            await stopping
        os.kill(handle.pid, signal.SIGCONT)
        await stage.vmm.stop(handle)


@pytest.mark.parametrize("starved", [True, False])
async def test_a_bridge_that_still_starts_is_waited_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, starved: bool
) -> None:
    """A hypervisor finds the bridge that the one before started, before it answers; one that hangs is replaced."""
    handle = await stage.launch()
    await bridges.end_all(handle.directory)
    host = on_host(monkeypatch, starved=starved)
    monkeypatch.setattr(bridges, "ASK_SECONDS", LIMIT / 2)
    # It is found by its arguments, which the shell has too.
    bridge = command(handle.directory, handle.uid)
    pid = process.start(["sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *bridge], cwd=Path("/"))
    ensuring = asyncio.create_task(stage.vmm.ensure_bridge(handle))
    if starved:
        await host.looks_again(16)
        assert not ensuring.done()
        os.kill(pid, signal.SIGCONT)
    ensured = await ensuring
    assert process.is_alive(ensured.bridge_pid, ensured.bridge_start_ticks)
    assert (ensured.bridge_pid == pid) == starved
    assert sweep.bridge_processes(handle.directory) == [ensured.bridge_pid]
    assert ensured == replace(handle, bridge_pid=ensured.bridge_pid, bridge_start_ticks=ensured.bridge_start_ticks)
    assert await stage.vmm.adopt(VM) == Running(handle=ensured)


@pytest.mark.parametrize("starved", [True, False])
async def test_a_starved_vmm_is_adopted(hub: Hub, place: Path, monkeypatch: pytest.MonkeyPatch, starved: bool) -> None:
    """After a restart of the hypervisor it answers late, and goes on in its epoch; the control is started anew."""
    async with node(place, hub.binary) as before:
        vm = await before.running()
        await before.stop()
        await before.hang_up()
        host = on_host(monkeypatch, starved=starved)
        hanging = hub.faults.add(Fault(point="vm.info", kind=FaultKind.HANG, times=1000))
        async with node_here(place, hub.binary) as it:
            if starved:
                await hanging.met.wait()
                await host.looks_again(5)
            else:
                await it.until(vm.vm_id, vm_pb2.VM_STATE_BACKOFF)
            hanging.release()
            monkeypatch.undo()
            again = await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=1 if starved else 2)
            reasons = {event.vm_state_changed.reason for event in await it.all_events()}
    assert (again.epoch, again.vmm_pid == vm.vmm_pid) == ((1, True) if starved else (2, False))
    assert ("VMM_HUNG" in reasons) != starved
