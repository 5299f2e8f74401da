"""VMs with real guests through all of their life, and through the deaths of what runs them."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from cellmesh.api.common.v1 import container_pb2, exec_pb2, health_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2, vm_pb2, vm_service_pb2
from cellmesh.hypervisor.vmm import disks
from cellmesh.hypervisor.vmm.layout import short
from cellmesh.image import ContainerImage, GuestImage
from cellmesh.mesh.errors import MeshError
from support.commands import Box, ExecStream, refusals_of
from support.local_runtime import until
from support.node import Node
from support.real_node import PATIENCE, real_node, variant
from support.resource_attacks import FILL

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module")]

RUNNING, STOPPED, FAILED = vm_pb2.VM_STATE_RUNNING, vm_pb2.VM_STATE_STOPPED, vm_pb2.VM_STATE_FAILED
NOTICED = 2.0
"""Within how many seconds the death of a VMM is to be seen: the product's promise."""
SMALL_DISK, OLD_DISK = 128 << 20, 96 << 20
SOON = container_pb2.RestartPolicy(
    max_restarts=1, initial_backoff=timedelta(milliseconds=10), max_backoff=timedelta(milliseconds=10)
)
COUNTING = ("sh", "-c", "i=0; while true; do echo $i; i=$((i+1)); sleep 0.1; done")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def it(guest_image: GuestImage, example_images: dict[str, ContainerImage]) -> AsyncIterator[Node]:
    """Give a node that has the images."""
    async with real_node(guest_image, example_images.values()) as node:
        yield node


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def three(it: Node) -> list[vm_pb2.Vm]:
    """Give three VMs of three users that were created at once and run."""
    # As a hypervisor from before there were quotas made them.
    make_template(it.state_dir / "templates", OLD_DISK)
    sizes = (SMALL_DISK, OLD_DISK, SMALL_DISK)
    return list(await asyncio.gather(*(it.running(restart_policy=SOON, data_disk_bytes=size) for size in sizes)))


def make_template(templates: Path, size: int) -> None:
    """Make the disk that data disks of this size are copied from, without project quotas."""
    templates.mkdir(mode=0o700)
    template = templates / f"{disks._FORMAT}-{size}.raw"
    template.touch()
    os.truncate(template, size)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", template], check=True)


async def wish(it: Node, verb: str, vm_id: str) -> None:
    """Want a VM started, stopped, recycled or deleted."""
    request = getattr(vm_service_pb2, f"{verb}VmRequest")(request_id=str(uuid.uuid4()), vm_id=vm_id)
    await getattr(it.vms, f"{verb}Vm")(request)


async def health(it: Node, vm_id: str) -> health_pb2.HealthStatus:
    """Probe a VM now."""
    answer = await it.vms.CheckVmHealth(vm_service_pb2.CheckVmHealthRequest(vm_id=vm_id), timeout=30)
    return answer.status


def processes(it: Node) -> list[int]:
    """Return every process that works in the directory of a VM of this node: its VMM, what that runs, its bridge."""
    directory = str(it.run_dir / "vm")
    found = psutil.process_iter(["cwd", "cmdline"])
    return [each.pid for each in found if directory in f"{each.info['cwd']} {each.info['cmdline']}"]


async def test_three_vms_run_at_once(it: Node, three: list[vm_pb2.Vm]) -> None:
    """Prove that three guests boot side by side, each with a VMM and a uid of its own, and all are well."""
    assert await asyncio.gather(*(health(it, vm.vm_id) for vm in three)) == [health_pb2.HEALTH_STATUS_SERVING] * 3
    owners = {psutil.Process(vm.vmm_pid).uids().real for vm in three}
    assert len(owners) == 3
    assert 0 not in owners


async def test_a_vm_is_stopped_started_and_recycled(
    it: Node, three: list[vm_pb2.Vm], example_images: dict[str, ContainerImage]
) -> None:
    """Prove that containers come back by themselves: with all files after a start, lasting ones after a recycle."""
    vm_id = three[0].vm_id
    lasting = [container_pb2.PersistentPath(path="/app/notes")]
    await it.start_container(vm_id, example_images["live"].digest, persistent_paths=lasting, stop_grace=timedelta())
    app = Box(node=it, vm_id=vm_id, name="app")
    await app.shell("echo lasting > /app/notes/a; echo passing > /tmp/b")

    await it.start_container(vm_id, example_images["live"].digest, "idle", argv=COUNTING, stop_grace=timedelta())
    request = container_service_pb2.StopContainerRequest(
        request_id=str(uuid.uuid4()), vm_id=vm_id, container_name="idle"
    )
    await it.containers.StopContainer(request)
    assert await refusals_of(it, vm_id, "idle") == ["CONTAINER_NOT_RUNNING"] * 2  # its output is still there

    await wish(it, "Stop", vm_id)
    assert (await it.until(vm_id, STOPPED)).vmm_pid == 0
    assert not psutil.pid_exists(three[0].vmm_pid)

    await wish(it, "Start", vm_id)
    await it.until(vm_id, RUNNING, epoch=2)
    await it.until_container(vm_id, "app", container_pb2.CONTAINER_STATE_RUNNING)
    assert await app.shell("cat /app/notes/a /tmp/b") == "lasting\npassing"
    assert await refusals_of(it, vm_id, "idle") == ["CONTAINER_NOT_RUNNING"] * 3
    full = json.loads((await app.run("python3", "-c", FILL, "/tmp/filled", str(1 << 20), str(1 << 40), "9999")).text)
    assert full["errno"] == errno.EDQUOT

    await wish(it, "Recycle", vm_id)
    await it.until(vm_id, RUNNING, epoch=3)
    container = await it.until_container(vm_id, "app", container_pb2.CONTAINER_STATE_RUNNING)
    assert await app.shell("cat /app/notes/a; ls /tmp") == "lasting"
    assert (container.generation, container.epoch) == (3, 3)
    async with asyncio.timeout(PATIENCE):
        while int(await app.shell("df -k / | tail -1 | tr -s ' ' | cut -d' ' -f3")) > full["used"] >> 11:  # noqa: ASYNC110
            await asyncio.sleep(0.2)  # a file system tells nobody
    assert await health(it, vm_id) == health_pb2.HEALTH_STATUS_SERVING

    went = [event.vm_state_changed.to for event in await it.all_events(vm_id) if event.HasField("vm_state_changed")]
    names = [vm_pb2.VmState.Name(state).removeprefix("VM_STATE_") for state in went]
    start = ["PENDING", "STARTING", "RUNNING"]
    assert names == [*start, "STOPPING", "STOPPED", *start, "STOPPING", *start]


async def test_the_death_of_a_vmm_is_seen_and_mended(
    it: Node, three: list[vm_pb2.Vm], example_images: dict[str, ContainerImage]
) -> None:
    """Prove that kill -9 of a VMM is seen in time, that its policy brings VM and containers back, and only there."""
    vm_id = three[1].vm_id
    await it.start_container(vm_id, example_images["dev"].digest, argv=COUNTING)
    before = await it.get(vm_id)
    neighbours = {vm.vm_id: await it.get(vm.vm_id) for vm in three if vm.vm_id != vm_id}

    # It is followed from before its death: of a VM that is tried again after 10 ms, a later look sees the next epoch.
    async with aclosing(it.vms.WatchVms(vm_service_pb2.WatchVmsRequest(vm_id=vm_id))) as watch:
        assert (await anext(watch)).vm == before
        os.kill(before.vmm_pid, signal.SIGKILL)
        async with asyncio.timeout(NOTICED):
            while not (answer := await anext(watch)).HasField("vm") or answer.vm.state == RUNNING:
                pass
    dead = answer.vm
    assert (dead.reason, dead.vmm_pid) == ("VMM_EXITED", 0)
    assert "signal 9" in dead.message

    again = await it.until(vm_id, RUNNING, epoch=before.epoch + 1)
    assert (again.epoch, again.restart_count) == (before.epoch + 1, 1)
    container = await it.until_container(vm_id, "app", container_pb2.CONTAINER_STATE_RUNNING)
    assert (container.generation, container.epoch) == (2, again.epoch)
    assert await Box(node=it, vm_id=vm_id, name="app").shell("echo well > /tmp/file; cat /tmp/file") == "well"
    assert "without project quotas" in (it.run_dir / "vm" / short(vm_id) / "console.log").read_text()
    assert {vm_id: await it.get(vm_id) for vm_id in neighbours} == neighbours


async def test_vms_outlive_their_hypervisor(
    it: Node, three: list[vm_pb2.Vm], example_images: dict[str, ContainerImage]
) -> None:
    """Prove that kill -9 of the hypervisor stops nothing: the same processes run, and broken streams resume."""
    vm_id = three[2].vm_id
    await it.start_container(vm_id, example_images["dev"].digest, argv=COUNTING)
    box = Box(node=it, vm_id=vm_id, name="app")
    started = await box.shell("cut -d' ' -f22 /proc/1/stat")
    before = {vm.vm_id: await it.get(vm.vm_id) for vm in three}
    container = await it.container(vm_id)
    opening = box.opening("sh", "-c", "echo before; read line; echo $line")
    logs = container_service_pb2.StreamLogsRequest(vm_id=vm_id, container_name="app", follow=True)
    heard = await hear(it, logs, 3)
    async with ExecStream(it, opening) as stream:
        await stream.read()
        assert await stream.read_output(7) == b"before\n"
        await it.stop(signal.SIGKILL)
        with pytest.raises(MeshError):
            await stream.read()
    await it.hang_up()
    assert all(psutil.pid_exists(vm.vmm_pid) for vm in before.values())

    await it.start()
    for vm in before.values():
        now = await it.until(vm.vm_id, RUNNING)
        assert (now.vmm_pid, now.epoch, now.restart_count) == (vm.vmm_pid, vm.epoch, vm.restart_count)
    opening.resume, opening.stdout_offset = True, 7
    async with ExecStream(it, opening) as stream:
        assert (await stream.read()).opened.resumed
        stream.send(stdin=exec_pb2.ExecStdin(data=b"after\n"))
        assert await stream.read_output(6) == b"after\n"
    heard += await hear(it, logs, 3)
    counted = [int(line) for line in heard.splitlines()]
    assert counted == list(range(len(counted)))
    assert await box.shell("cut -d' ' -f22 /proc/1/stat") == started
    assert (await it.container(vm_id)).status == container.status
    assert (await it.container(vm_id)).generation == container.generation
    # Reports arrive again, and disks the new hypervisor knows nothing of are in nobody's way.
    never = container_pb2.RestartPolicy(mode=container_pb2.RESTART_MODE_NEVER)
    for name, image in example_images.items():
        await it.start_container(vm_id, image.digest, name, argv=["sh", "-c", "exit 3"], restart_policy=never)
        ended = await it.until_container(vm_id, name, container_pb2.CONTAINER_STATE_STOPPED)
        assert ended.status.exit_code == 3


async def hear(it: Node, request: container_service_pb2.StreamLogsRequest, lines: int) -> str:
    """Read at least so many lines of a log, from where `request` says, which is moved on."""
    heard = b""
    stream = it.containers.StreamLogs(request)
    async with asyncio.timeout(PATIENCE):
        async for answer in stream:
            heard += b"".join(chunk.data for chunk in answer.chunks)
            request.offset, request.generation = answer.next_offset, answer.generation
            if heard.count(b"\n") >= lines and heard.endswith(b"\n"):
                break
    stream.cancel()
    return heard.decode()


async def test_deleted_vms_leave_nothing(it: Node, three: list[vm_pb2.Vm]) -> None:
    """Prove that after a deletion there is no process, no directory and no VM."""
    assert len(processes(it)) >= 2 * len(three)
    for vm in three:
        await wish(it, "Delete", vm.vm_id)
    for vm in three:
        await it.until_gone(vm.vm_id)
        with pytest.raises(MeshError) as error:
            await it.get(vm.vm_id)
        assert error.value.reason == "VM_NOT_FOUND"
    # The emulator's QEMU is a child of the process that was killed, and goes a moment after it.
    await until(lambda: processes(it) == [])
    assert left(it.run_dir / "vm") == left(it.state_dir / "vm") == []


def left(directory: Path) -> list[str]:
    """Name what is in a directory."""
    return [path.name for path in directory.iterdir()]


async def test_a_guest_that_never_speaks_is_given_up(guest_image: GuestImage) -> None:
    """Prove that a guest whose init sleeps is tried by its policy, then FAILED with why and what to do."""
    async with real_node(guest_image, boot_timeout=timedelta(seconds=4)) as it:
        mute = variant(it, guest_image, cmdline=f"{guest_image.cmdline} rdinit=/bin/usleep -- 3600000000")
        vm = await it.create(guest_image=mute, restart_policy=SOON)
        await it.until_vm(vm.vm_id, lambda vm: vm.vmm_pid != 0)
        assert processes(it) != []
        given_up = await it.until(vm.vm_id, FAILED)
        assert (given_up.reason, given_up.epoch, given_up.vmm_pid) == ("HELLO_TIMEOUT", 2, 0)
        # The limit counts the time that the guest could use: on a busy machine more than 4 s pass.
        assert "The guest's agent said no Hello within" in given_up.message
        assert "Read its console log" in given_up.message
        assert "mend the cause, then start or recycle it" in given_up.message
        assert left(it.run_dir / "vm") == []
        # The emulator's QEMU is a child of the process that was killed, and goes a moment after it.
        await until(lambda: processes(it) == [])
