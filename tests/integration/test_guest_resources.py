"""One container takes all it can get of a kernel resource: its sibling and the agent still get theirs."""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass

import pytest

from cellmesh.api.common.v1 import container_pb2, health_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2, vm_service_pb2
from cellmesh.mesh.errors import MeshError
from support import walls
from support.cell import DATA_DISK, Cell
from support.commands import SECONDS, Box, ExecStream
from support.resource_attacks import ATTACKS, COMMON, FILL, MEMORY_IN_USE, ONE_OF_EACH

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module")]

MIB = 1 << 20
UNCHARGED_BOUND = 40 * MIB
"""How much the guest's memory may grow beyond what the containers' cgroups count."""
AVAILABLE_FLOOR = 48 * MIB
NAME = "taker"
EDQUOT = 122
DISK_FLOOR = DATA_DISK // 18
"""A little less than a sixteenth of what the file system has for files."""
FILES = 100
ALL = 1 << 40
START = "start"
"""What a sibling is refused that cannot even run a program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a container at its limit took, and what that left for others."""

    taken: int
    errno: int
    uncharged: int
    available: int
    refused: dict[str, int]

    @property
    def within_bounds(self) -> bool:
        """Whether a sibling got one of each resource and the guest kept its memory."""
        return not self.refused and self.uncharged <= UNCHARGED_BOUND and self.available >= AVAILABLE_FLOOR


async def memory(cell: Cell, *names: str) -> tuple[int, int]:
    """Return the guest's memory that no container's cgroup counts, and its available memory, bytes."""
    used, available = map(int, (await cell.dev.python(MEMORY_IN_USE)).split())
    counted = 0
    for name in names:
        request = container_service_pb2.GetStatsRequest(vm_id=cell.vm_id, container_name=name)
        counted += (await cell.it.containers.GetStats(request, timeout=SECONDS)).stats.memory_bytes
    return used - counted, available


async def refused_to(box: Box) -> dict[str, int]:
    """Return the errno of each resource a container asks for and does not get."""
    ended = None
    try:
        ended = await box.run("python3", "-c", ONE_OF_EACH)
    except* MeshError as errors:
        print(errors.exceptions[0])  # beside the numbers
    if ended is None:
        return {START: -1}
    refused: dict[str, int] = json.loads(ended.stdout) if ended.exit_code == 0 else {START: ended.exit_code}
    return refused


async def measure(cell: Cell, resource: str) -> Measured:
    """Run one attack in a container of its own and look at its sibling, the agent and the guest's memory."""
    limits = container_pb2.ContainerResources(memory_bytes=128 * MIB, pids=256)
    names = (NAME, cell.live.name, cell.dev.name, cell.root.name)
    async with cell.running(NAME, "sleep", "86400", image="root", resources=limits) as box:
        before, _ = await memory(cell, *names)
        async with ExecStream(cell.it, box.opening("python3", "-c", ATTACKS[resource])) as stream:
            await stream.read()
            told = json.loads(await stream.read_until(b"\n"))
            refused = await refused_to(cell.dev)
            health = await cell.it.vms.CheckVmHealth(
                vm_service_pb2.CheckVmHealthRequest(vm_id=cell.vm_id), timeout=SECONDS
            )
            assert health.status == health_pb2.HEALTH_STATUS_SERVING
            after, available = (before, 0) if START in refused else await memory(cell, *names)
    measured = Measured(
        taken=told["taken"],
        errno=told["errno"],
        uncharged=after - before,
        available=available,
        refused=refused,
    )
    print(f"{resource}: {measured}")  # the table in docs/threat-model.md is made of these lines
    return measured


@pytest.mark.parametrize("resource", ATTACKS)
async def test_a_container_at_its_limit_leaves_others_theirs(cell: Cell, resource: str) -> None:
    """Prove that siblings get each resource, the agent answers, and what no cgroup counts stays small."""
    measured = await measure(cell, resource)
    assert measured.taken > 0
    assert measured.within_bounds, measured


async def test_limits_that_add_up_to_more_than_the_guest_leave_the_agent_its_own(cell: Cell) -> None:
    """Prove that a container allowed more memory than there is dies alone, while the guest keeps a reserve."""
    limits = container_pb2.ContainerResources(memory_bytes=4096 * MIB)
    async with cell.running("large", "sleep", "86400", image="root", resources=limits) as box:
        hog = await box.run("python3", "-c", walls.HOG)
        assert (hog.exit_code, hog.oom_killed) == (137, True)
        health = await cell.it.vms.CheckVmHealth(vm_service_pb2.CheckVmHealthRequest(vm_id=cell.vm_id), timeout=SECONDS)
        assert health.status == health_pb2.HEALTH_STATUS_SERVING
    for box in (cell.live, cell.dev, cell.root):
        status = (await cell.until(box.name, lambda _: True)).status
        assert (status.oom_kills, status.restart_count) == (0, 0)


async def test_common_programs_work(cell: Cell) -> None:
    """Prove that names, interfaces, processes, semaphores, terminals and threads work as a program expects."""
    for box in (cell.live, cell.root):
        assert await box.python(COMMON) == "works"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What a container got of the data disk, the errno that ended it, and what it is told that there is."""

    written: int
    made: int
    errno: int
    room: int
    used: int
    files: int
    files_used: int


async def fill(box: Box, directory: str, *, size: int = 8 * MIB, wanted: int = ALL, files: int = ALL) -> Filled:
    """Fill a directory with files of a size, until there are `wanted` bytes or so many files, or no more."""
    ended = await box.run("python3", "-c", FILL, directory, str(size), str(wanted), str(files))
    filled = Filled(**json.loads(ended.text))
    print(f"{box.name}: {filled}")  # the table in docs/threat-model.md is made of these lines
    return filled


async def remove(cell: Cell, name: str) -> None:
    """Delete a container with all its files."""
    request = container_service_pb2.DeleteContainerRequest(
        request_id=str(uuid.uuid4()), vm_id=cell.vm_id, container_name=name, force=True, persistent_paths=True
    )
    await cell.it.containers.DeleteContainer(request, timeout=SECONDS)


async def test_containers_that_fill_the_disk_leave_each_other_a_floor(cell: Cell) -> None:
    """Prove that all others can't take a container's sixteenth, nor one the files, and that it gives them back."""
    lasting = [container_pb2.PersistentPath(path="/srv/lasting")]
    box = await cell.start(NAME, "sleep", "86400", image="root", persistent_paths=lasting)
    fillers = (box, cell.dev, cell.root)
    for filler in fillers:
        directory = "/srv/lasting" if filler is box else "/tmp/filled"
        filled = await fill(filler, directory)
        assert filled.errno == EDQUOT
        assert filled.room * 0.9 < filled.used <= filled.room < DATA_DISK
    # A persistent path and the layer are of one account.
    assert (await fill(box, "/tmp/filled", wanted=MIB)).errno == EDQUOT
    assert (await fill(cell.live, "/tmp/filled", wanted=DISK_FLOOR)).errno == 0
    await cell.live.shell("rm -r /tmp/filled")
    await box.shell("rm /srv/lasting/*")
    filled = await fill(box, "/tmp/filled", size=0)
    assert filled.errno == EDQUOT
    assert filled.files_used == filled.files
    assert (await fill(cell.live, "/tmp/filled", size=0, files=FILES)).errno == 0
    health = await cell.it.vms.CheckVmHealth(vm_service_pb2.CheckVmHealthRequest(vm_id=cell.vm_id), timeout=SECONDS)
    assert health.status == health_pb2.HEALTH_STATUS_SERVING
    await remove(cell, NAME)
    async with cell.running(NAME, "sleep", "86400", image="root"), asyncio.timeout(SECONDS):
        # The same account as before; it is full until what was removed is deleted.
        while (await fill(box, "/tmp/filled", files=1)).files_used > filled.files // 2:  # noqa: ASYNC110
            await asyncio.sleep(0.5)  # a file system tells nobody
    for filler in (cell.dev, cell.root, cell.live):
        await filler.shell("rm -r /tmp/filled")
