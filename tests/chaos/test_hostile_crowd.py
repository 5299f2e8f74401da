"""Sixty-four hostile VMs at once, each with all the connections its VMM lets it have: the hypervisor stays as it was.

The numbers are written to build/hostile_crowd.txt. How long a neighbour's health takes is compared with that of a
second node beside it, which nobody attacks: both wait for the same processors.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import psutil
import pytest

from cellmesh.api.common.v1 import health_pb2
from cellmesh.api.hypervisor.v1 import vm_service_pb2
from simulator import Hub
from support import tables
from support.hollow_images import hollow_guest
from support.node import SECONDS, short_directory
from support.zygote import ForkedNode, forked_node

VMS = 64
ATTACKERS = 4
"""Processes that play them."""
LOOK_SECONDS = 5.0
LOOKS = 6
"""How often a machine that is busy with something else is looked at: what holds the hypervisor up is always there."""
GROWTH_BYTES = 64 << 20
DESCRIPTORS = 3 * 4 * VMS + 64
"""How many more a hypervisor may have open: three for each connection it admits, and what it does itself."""
SLOWER = 2.0
LEAST_SAMPLES = 40

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio]


@dataclass(slots=True)
class Seen:
    """What was seen of two nodes in the same time: of the one that is attacked, and of the other."""

    here: list[float] = field(default_factory=list)
    there: list[float] = field(default_factory=list)
    memory: int = 0
    files: int = 0

    def faults(self, memory: int, files: int) -> list[str]:
        """Say what should not have been seen of memory and descriptors, of which there were so many before."""
        found = []
        if self.memory - memory > GROWTH_BYTES:
            found.append(f"it grew by {self.memory - memory >> 20} MiB")
        if self.files - files > DESCRIPTORS:
            found.append(f"it opened {self.files - files} descriptors")
        return found

    @property
    def ratio(self) -> float:
        """Return how much slower this node's health is than the other's, by the slowest twentieth."""
        return p95(self.here) / p95(self.there)


@dataclass(slots=True, kw_only=True)
class Crowd:
    """A node with all those VMs and a neighbour of theirs, and a node with one VM."""

    it: ForkedNode
    neighbour: str
    hostile: list[str]
    other: ForkedNode
    others: str

    def size(self) -> tuple[int, int]:
        """Return the attacked hypervisor's resident bytes and open descriptors."""
        process = psutil.Process(self.it.process.pid)  # type: ignore[union-attr]
        return process.memory_info().rss, process.num_fds()

    async def look(self, seconds: float) -> Seen:
        """Ask both for health and the attacked one for its VMs, again and again."""
        seen, end = Seen(), time.monotonic() + seconds
        while time.monotonic() < end or len(seen.here) < LEAST_SAMPLES:
            seen.here.append(await health(self.it, self.neighbour))
            seen.there.append(await health(self.other, self.others))
            listed = await self.it.vms.ListVms(vm_service_pb2.ListVmsRequest(), timeout=SECONDS)
            assert len(listed.vms) > 1
            memory, files = self.size()
            seen.memory, seen.files = max(seen.memory, memory), max(seen.files, files)
        return seen

    def sockets(self) -> list[str]:
        """Return where the hostile ones dial."""
        return [f"{self.it.run_dir}/vm/{vm.replace('-', '')[:12]}/vsock.sock_1025" for vm in self.hostile]


def p95(samples: list[float]) -> float:
    """Return what 19 of 20 stay below."""
    return statistics.quantiles(samples, n=20)[-1]


async def health(it: ForkedNode, vm_id: str) -> float:
    """Ask for a VM's health; return the seconds it took."""
    began = time.monotonic()
    answer = await it.vms.CheckVmHealth(vm_service_pb2.CheckVmHealthRequest(vm_id=vm_id), timeout=SECONDS)
    assert answer.status == health_pb2.HEALTH_STATUS_SERVING
    return time.monotonic() - began


@asynccontextmanager
async def crowd(vms: int, *, defect: str = "") -> AsyncIterator[Crowd]:
    """Run both nodes."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(short_directory())
        hub = await stack.enter_async_context(Hub(directory / "hub"))
        nodes = []
        for name, planted in (("a", defect), ("b", "")):
            (directory / name).mkdir(mode=0o755)
            hollow_guest(directory / name / "state" / "images")
            node = await stack.enter_async_context(forked_node(directory / name, hub.binary, defect=planted))
            nodes.append(node)
        it, other = nodes
        running = await asyncio.gather(*(it.running() for _ in range(vms + 1)))
        first, *hostile = (vm.vm_id for vm in running)
        alone = (await other.running()).vm_id
        yield Crowd(it=it, neighbour=first, hostile=hostile, other=other, others=alone)


class Attack:
    """The processes that play hostile VMs, and what each said last of what it did."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self._processes = processes
        self._said: dict[int, dict[str, int]] = {}

    async def listen(self, process: asyncio.subprocess.Process) -> None:
        """Take down what one says until it is killed."""
        assert process.stdout is not None
        async for line in process.stdout:
            if line.endswith(b"\n"):
                self._said[process.pid] = json.loads(line)

    def done(self) -> dict[str, int]:
        """Return how often all of them together tried to connect, did, and had a connection ended."""
        return {name: sum(said[name] for said in self._said.values()) for name in ("tried", "connected", "ended")}

    def is_whole(self) -> bool:
        """Tell whether all connections there can be were tried: those who play the VMs get little of a busy machine."""
        done = self.done()
        return len(self._said) == len(self._processes) and done["tried"] > VMS * 1023 and done["ended"] > VMS


@asynccontextmanager
async def attacking(sockets: list[str]) -> AsyncIterator[Attack]:
    """Attack inside."""
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "support.crowd", *sockets[number::ATTACKERS]),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )
        for number in range(ATTACKERS)
    ]
    attack = Attack(processes)
    listening = [asyncio.create_task(attack.listen(process)) for process in processes]
    try:
        yield attack
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            await process.wait()
        await asyncio.gather(*listening)


@pytest.mark.timeout(600)
async def test_a_crowd_of_hostile_vms_costs_nothing_that_grows() -> None:
    """Memory, descriptors, a neighbour's health and `vm ls` are about as they are without the attack."""
    async with crowd(VMS) as it:
        quiet = await it.look(LOOK_SECONDS)
        memory, files = it.size()
        async with attacking(it.sockets()) as attack:
            looks = [await it.look(LOOK_SECONDS), await it.look(LOOK_SECONDS)]
            while not attack.is_whole() or (len(looks) < LOOKS and min(look.ratio for look in looks) > SLOWER):
                looks.append(await it.look(LOOK_SECONDS))
        seen = min(looks, key=lambda look: look.ratio)
        tables.write(
            "hostile_crowd",
            (f"{VMS} VMs, {LOOK_SECONDS * len(looks):g} s", "without", "attacked"),
            (
                ("a neighbour's health, p95, ms", f"{1000 * p95(quiet.here):.1f}", f"{1000 * p95(seen.here):.1f}"),
                ("the same beside it, ms", f"{1000 * p95(quiet.there):.1f}", f"{1000 * p95(seen.there):.1f}"),
                ("memory, MiB", f"{memory / 2**20:.1f}", f"{max(look.memory for look in looks) / 2**20:.1f}"),
                ("descriptors", files, max(look.files for look in looks)),
                *((f"connections: {name}", 0, number) for name, number in attack.done().items()),
            ),
        )
        assert [fault for look in looks for fault in look.faults(memory, files)] == []
        assert seen.ratio <= SLOWER


@pytest.mark.timeout(240)
async def test_without_the_bounds_a_few_of_them_are_noticed() -> None:
    """The planted defect: without the acceptor's bounds an eighth of them is too much."""
    async with crowd(VMS // 8, defect="no bounds of guests") as it:
        before = it.size()
        async with attacking(it.sockets()), asyncio.timeout(SECONDS):
            while not Seen([], [], *it.size()).faults(*before):  # noqa: ASYNC110  # other processes do it
                await asyncio.sleep(0.05)
