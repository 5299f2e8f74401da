"""The life of a VM's processes against the simulated binary: real processes, uids, sockets and bridges."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from cellmesh.hypervisor.vmm import (
    Budgets,
    Cell,
    Disk,
    DiskRefused,
    Doubtful,
    Exit,
    ExitReason,
    Gone,
    InvalidVm,
    LaunchFailed,
    Rung,
    Running,
    StillRunning,
    StopUnfinished,
    Vmm,
    VmmError,
    VmmTimeout,
    VmState,
    process,
)
from simulator import Fault, FaultKind, Hub

# Drawn, as the host's cgroups are named by it and other tests may run beside these.
VM, OTHER = (f"{secrets.token_hex(6)}-4cde-8f01-234567890abc" for _ in range(2))
UID_BASE = 310_000
MIB = 1 << 20
SHORT = Budgets(power_button=0.2, vm_shutdown=0.2, vmm_shutdown=0.2, sigterm=0.2, sigkill=60)
STEPS = ("handle_written", "bridge_started", "vmm_started", "vm_created", "vm_booted")

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="a uid per VM needs root")


class Node:
    """One node's directories, its simulated binary, and hypervisors that come and go."""

    def __init__(self, root: Path, hub: Hub) -> None:
        self.root = root
        self.hub = hub
        self.vmm = self.hypervisor()

    def hypervisor(self, failpoint: Callable[[str], None] = lambda _: None) -> Vmm:
        """Return a hypervisor that knows nothing but what is on disk."""
        return Vmm(
            binary=self.hub.binary,
            run_dir=self.root / "run",
            state_dir=self.root / "state",
            uid_base=UID_BASE,
            failpoint=failpoint,
        )

    async def cell(self, vm_id: str = VM, *, epoch: int = 1) -> Cell:
        """Prepare a VM as the reconciler does and return what to launch."""
        await self.vmm.prepare(vm_id)
        data = await self.vmm.ensure_data_disk(vm_id, 64 * MIB)
        return Cell(
            vm_id=vm_id,
            epoch=epoch,
            vcpus=1,
            memory_bytes=128 * MIB,
            kernel=self.root / "vmlinuz",
            initramfs=self.root / "initramfs",
            cmdline="console=hvc0",
            disks=(Disk(path=data, serial="data", readonly=False),),
        )

    async def remove(self) -> None:
        """Kill and destroy every VM."""
        state = self.root / "state/vm"
        for vm_id in [entry.name for entry in state.iterdir()] if state.is_dir() else []:
            found = await self.vmm.adopt(vm_id)
            if isinstance(found, Running | Doubtful) and found.handle is not None:
                await self.vmm.kill(found.handle)
            await self.vmm.destroy(vm_id)


@pytest_asyncio.fixture
async def node() -> AsyncIterator[Node]:
    """Give a node whose directories the VMs' uids can reach; at the end nothing may be left on it."""
    root = Path(tempfile.mkdtemp(prefix="cm-"))
    root.chmod(0o711)
    kernel = bytearray(8192)
    kernel[0x1FE:0x200], kernel[0x202:0x206] = b"\x55\xaa", b"HdrS"
    (root / "vmlinuz").write_bytes(kernel)
    (root / "initramfs").write_bytes(b"070701")
    try:
        async with Hub(root / "hub") as hub:
            made = Node(root, hub)
            try:
                yield made
            finally:
                await made.remove()
            assert not made.vmm.sweep([])
    finally:
        shutil.rmtree(root)


def status(pid: int) -> dict[str, str]:
    """Return /proc/<pid>/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.asyncio
async def test_a_vm_runs_with_nothing_it_does_not_need(node: Node) -> None:
    """Prove of a VM: own uid, no capability nor a way to one, no core, one socket to dial, a directory of its own."""
    handle = await node.vmm.launch(await node.cell())
    for pid in (handle.pid, handle.bridge_pid):
        found = status(pid)
        assert found["Uid"].split() == found["Gid"].split() == [str(UID_BASE)] * 4
        assert (int(found["CapPrm"], 16), int(found["CapEff"], 16), found["NoNewPrivs"]) == (0, 0, "1")
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert any(line.split()[4:6] == ["0", "0"] for line in limits.splitlines() if "core file" in line)
    assert int(status(handle.pid)["CapBnd"], 16) == 0
    assert Path(f"/proc/{handle.pid}/environ").read_bytes() == b""
    run = handle.directory
    assert (run.stat().st_mode & 0o777, run.stat().st_uid) == (0o700, UID_BASE)
    # A port P that a guest dials is the socket vsock.sock_P, and no other is there to be dialled.
    assert {path.name for path in run.glob("vsock.sock_*") if path.is_socket()} <= {"vsock.sock_1025"}
    state = node.root / "state/vm" / VM
    assert (state.stat().st_mode & 0o777, state.stat().st_uid) == (0o710, 0)
    assert (state / "handle.json").stat().st_uid == 0
    assert (await node.vmm.probe(handle)).state is VmState.RUNNING


@pytest.mark.asyncio
async def test_one_vms_uid_reaches_nothing_of_another(node: Node) -> None:
    """Prove drill 2: with VM B's uid every socket of VM A and the handles are out of reach."""
    first, second = await asyncio.gather(*[node.vmm.launch(await node.cell(vm_id)) for vm_id in (VM, OTHER)])
    assert first.uid != second.uid
    targets = [first.directory / name for name in ("api.sock", "vsock.sock", "bridge.sock", "in/agent.1")]
    assert all(target.is_socket() for target in targets)
    program = (
        "import socket, sys\n"
        "for path in sys.argv[1:]:\n"
        "    try: socket.socket(socket.AF_UNIX).connect(path)\n"
        "    except PermissionError: print('denied')\n"
    )
    setpriv = process.tool("setpriv")
    assert setpriv is not None
    lowered = [setpriv, f"--reuid={second.uid}", f"--regid={second.uid}", "--clear-groups"]
    asked = await asyncio.create_subprocess_exec(
        *lowered, "/usr/bin/python3", "-c", program, *map(str, targets), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await asked.communicate()
    assert said.split() == [b"denied"] * len(targets)


@pytest.mark.asyncio
async def test_a_new_hypervisor_adopts_what_runs(node: Node) -> None:
    """Prove that a VM outlives its hypervisor, is found with the same pid, and its death is seen by the new one."""
    handle = await node.vmm.launch(await node.cell())
    later = node.hypervisor()
    assert await later.adopt(VM) == Running(handle=handle)
    waiting = asyncio.create_task(later.wait_exit(handle))
    os.kill(handle.pid, signal.SIGKILL)
    assert await waiting == Exit(reason=ExitReason.KILLED, code=None, signal=signal.SIGKILL)
    assert await later.adopt(VM) == Gone(reason="exited")


@pytest.mark.asyncio
async def test_a_dead_bridge_is_replaced_when_its_vm_is_adopted(node: Node) -> None:
    """Prove that adoption leaves a VM with a bridge that listens for its agent."""
    handle = await node.vmm.launch(await node.cell())
    os.kill(handle.bridge_pid, signal.SIGKILL)
    await process.wait(handle.bridge_pid, handle.bridge_start_ticks)
    process.reap(handle.bridge_pid)
    adopted = await node.hypervisor().adopt(VM)
    assert isinstance(adopted, Running)
    assert adopted.handle.pid == handle.pid
    assert process.is_alive(adopted.handle.bridge_pid, adopted.handle.bridge_start_ticks)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(node.vmm.agent_socket(VM, 1)))


@pytest.mark.asyncio
async def test_a_guest_that_obeys_the_power_button_is_stopped_by_it(node: Node) -> None:
    """Prove that the gentlest rung suffices when the guest does its part, and the end is called asked for."""
    handle = await node.vmm.launch(await node.cell())
    waiting = asyncio.create_task(node.vmm.wait_exit(handle))
    await node.vmm.stop(handle, until=Rung.POWER_BUTTON, budgets=Budgets(power_button=60))
    assert (await waiting).reason is ExitReason.STOPPED


@pytest.mark.asyncio
async def test_a_hung_vmm_is_climbed_over_and_killed(node: Node) -> None:
    """Prove that a VMM that answers nothing outlives no ladder, and is not killed when that was not allowed."""
    handle = await node.vmm.launch(await node.cell())
    for action in ("vm.power-button", "vm.shutdown", "vmm.shutdown"):
        node.hub.faults.add(Fault(point=action, kind=FaultKind.HANG, times=10))
    os.kill(handle.pid, signal.SIGSTOP)
    with pytest.raises(StopUnfinished):
        await node.vmm.stop(handle, until=Rung.VMM_SHUTDOWN, budgets=SHORT)
    assert process.is_alive(handle.pid, handle.start_ticks)
    await node.vmm.stop(handle, budgets=SHORT)
    assert not process.is_alive(handle.pid, handle.start_ticks)
    assert (await node.vmm.wait_exit(handle)).signal == signal.SIGKILL


@pytest.mark.asyncio
@pytest.mark.parametrize("action", ["vm.create", "vm.boot"])
async def test_a_lost_answer_is_no_failure(node: Node, action: str) -> None:
    """Prove that a VM whose create or boot was done but not answered runs."""
    node.hub.faults.add(Fault(point=action, kind=FaultKind.LOSE_REPLY))
    handle = await node.vmm.launch(await node.cell())
    assert (await node.vmm.probe(handle)).state is VmState.RUNNING


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [FaultKind.FAIL, FaultKind.CRASH_BEFORE, FaultKind.CRASH_AFTER])
@pytest.mark.parametrize("action", ["vm.create", "vm.boot"])
async def test_a_failed_start_leaves_nothing_but_the_hosts_own_socket(node: Node, action: str, kind: FaultKind) -> None:
    """Prove that no process, socket or handle of a failed start stays, and that the next start works."""
    cell = await node.cell()
    hello = node.vmm.hello_socket(VM)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(hello))
        await node.vmm.own(hello, VM)
        node.hub.faults.add(Fault(point=action, kind=kind))
        with pytest.raises(VmmError):
            await node.vmm.launch(cell)
        left = {entry.name for entry in node.vmm.directory(VM).iterdir()}
        assert left <= {"in", "vmm.log", "console.log", "vsock.sock_1025"}
        assert hello.is_socket()
        assert {entry.kind for entry in node.vmm.sweep([])} == {"run_directory", "state_directory"}
        assert await node.vmm.adopt(VM) == Gone(reason="never_started")
        await node.vmm.launch(replace(cell, epoch=2))


@pytest.mark.asyncio
async def test_a_cancelled_start_leaves_nothing(node: Node) -> None:
    """Prove that cancelling a start that hangs ends its processes and travels on."""
    fault = node.hub.faults.add(Fault(point="vm.boot", kind=FaultKind.HANG))
    starting = asyncio.create_task(node.vmm.launch(await node.cell()))
    await fault.met.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not [entry for entry in node.vmm.sweep([]) if entry.pid is not None]


@pytest.mark.asyncio
@pytest.mark.parametrize("step", STEPS)
async def test_a_hypervisor_killed_while_starting_is_survived(node: Node, step: str) -> None:
    """Prove drill 42 for start: whatever step it died at, the next one knows what is there and can clear it away."""
    await node.cell()
    program = (
        "import asyncio, os, signal, sys; sys.path[:0] = sys.argv[4].split(':')\n"
        "from pathlib import Path\n"
        "from cellmesh.hypervisor.vmm import Cell, Vmm\n"
        "root, step = Path(sys.argv[1]), sys.argv[2]\n"
        "die = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == f'launch.{step}' else None\n"
        "vmm = Vmm(binary=root / 'hub/cloud-hypervisor', run_dir=root / 'run', state_dir=root / 'state',\n"
        f"          uid_base={UID_BASE}, failpoint=die)\n"
        "cell = Cell(vm_id=sys.argv[3], epoch=1, vcpus=1, memory_bytes=1 << 27, kernel=root / 'vmlinuz',\n"
        "            initramfs=root / 'initramfs', cmdline='', disks=())\n"
        "asyncio.run(vmm.launch(cell))\n"
    )
    doomed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(node.root), step, VM, ":".join(sys.path)
    )
    assert await doomed.wait() == -signal.SIGKILL
    found = await node.vmm.adopt(VM)
    if step == "vm_booted":
        assert isinstance(found, Running)
    elif step in ("vmm_started", "vm_created"):
        assert isinstance(found, Doubtful)
        assert (found.reason, found.handle is not None) == ("not_booted", True)
    else:
        assert found == Gone(reason="never_started")
    if isinstance(found, Running | Doubtful) and found.handle is not None:
        await node.vmm.kill(found.handle)
    await node.vmm.clean(VM)
    assert [entry.kind for entry in node.vmm.sweep([])] == ["state_directory"]


@pytest.mark.asyncio
async def test_an_unanswering_vmm_is_doubtful_and_left_alone(node: Node) -> None:
    """Prove that silence is not taken for death."""
    handle = await node.vmm.launch(await node.cell())
    hanging = node.hub.faults.add(Fault(point="vm.info", kind=FaultKind.HANG, times=10))
    found = await node.hypervisor().adopt(VM)
    assert isinstance(found, Doubtful)
    assert (found.reason, found.handle) == ("unresponsive", handle)
    assert process.is_alive(handle.pid, handle.start_ticks)
    with pytest.raises(VmmTimeout):
        await node.vmm.probe(handle)
    hanging.times = 0


@pytest.mark.asyncio
async def test_a_live_vm_is_neither_started_twice_nor_cleaned_away(node: Node) -> None:
    """Prove that start, clean and destroy refuse while a process of the VM lives."""
    cell = await node.cell()
    handle = await node.vmm.launch(cell)
    for refused in (node.vmm.launch(replace(cell, epoch=2)), node.vmm.clean(VM), node.vmm.destroy(VM)):
        with pytest.raises(StillRunning):
            await refused
    assert await node.vmm.adopt(VM) == Running(handle=handle)


@pytest.mark.asyncio
async def test_a_destroyed_vm_leaves_nothing_and_its_uid_is_free(node: Node) -> None:
    """Prove that clean keeps the disk, destroy removes everything, and the uid can serve another VM."""
    handle = await node.vmm.launch(await node.cell())
    await node.vmm.kill(handle)
    await node.vmm.clean(VM)
    assert not handle.directory.exists()
    assert {entry.name for entry in (node.root / "state/vm" / VM).iterdir()} == {"data.raw"}
    assert await node.vmm.adopt(VM) == Gone(reason="never_started")
    await node.vmm.destroy(VM)
    assert node.vmm.sweep([]) == []
    assert (await node.vmm.launch(await node.cell(OTHER))).uid == handle.uid


@pytest.mark.asyncio
async def test_a_disk_is_added_once_and_only_if_safe(node: Node) -> None:
    """Prove that a hot-added disk shows up, adding it again changes nothing, and a link is refused."""
    handle = await node.vmm.launch(await node.cell())
    image = node.root / "rootfs.erofs"
    image.write_bytes(bytes(4096))
    image.chmod(0o644)
    disk = Disk(path=image, serial="0123456789abcdef0123", readonly=True)
    await node.vmm.add_disk(handle, disk)
    await node.vmm.add_disk(handle, disk)
    (node.root / "link").symlink_to(image)
    with pytest.raises(DiskRefused):
        await node.vmm.add_disk(handle, replace(disk, path=node.root / "link", serial="x"))
    machine = node.hub.process(handle.directory).machine
    assert machine is not None
    assert machine.serials == ["data", disk.serial]


@pytest.mark.asyncio
async def test_an_unsafe_disk_starts_nothing(node: Node) -> None:
    """Prove drill 4: the start is refused before any process exists."""
    cell = await node.cell()
    (node.root / "link").symlink_to(cell.disks[0].path)
    with pytest.raises(DiskRefused):
        await node.vmm.launch(replace(cell, disks=(replace(cell.disks[0], path=node.root / "link"),)))
    assert await node.vmm.adopt(VM) == Gone(reason="never_started")


@pytest.mark.asyncio
async def test_many_vms_start_at_once(node: Node) -> None:
    """Prove that parallel starts share nothing: each has its own uid, process and bridge."""
    ids = [f"{number:012x}-4cde-8f01-234567890abc" for number in range(1, 31)]
    cells = [await node.cell(vm_id) for vm_id in ids]
    handles = await asyncio.gather(*(node.vmm.launch(cell) for cell in cells))
    for distinct in ("uid", "pid", "bridge_pid", "directory"):
        assert len({getattr(handle, distinct) for handle in handles}) == len(ids)


@pytest.mark.asyncio
async def test_what_the_binary_is_and_what_it_is_not(node: Node) -> None:
    """Prove that the version is the binary's own word, and that a wrong binary is told with what to set."""
    assert (await node.vmm.version()).startswith("cloud-hypervisor v53")
    wrong = Vmm(
        binary=Path("/bin/false"),
        run_dir=node.root / "run",
        state_dir=node.root / "state",
        uid_base=UID_BASE,
        failpoint=lambda _: None,
    )
    with pytest.raises(LaunchFailed, match="CELLMESH_VMM"):
        await wrong.version()
    with pytest.raises(LaunchFailed, match="ended"):
        await wrong.launch(await node.cell())


@pytest.mark.asyncio
async def test_only_sockets_of_the_vm_are_given_to_it(node: Node) -> None:
    """Prove that a socket outside the VM's run directory is never chowned."""
    await node.cell()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(node.root / "operator.sock"))
        with pytest.raises(InvalidVm):
            await node.vmm.own(node.root / "operator.sock", VM)
    assert (node.root / "operator.sock").stat().st_uid == 0
