"""The `cellmesh` command and a real hypervisor, on simulated VMs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from support.cli_stage import SECONDS, Stage, interrupt, ready, runs, stage
from support.node import Node, node


@pytest.mark.asyncio
async def test_the_life_of_a_vm() -> None:
    """Create, container, exec, health, recycle, stop and delete do with a real node what they say."""
    async with stage() as it, node(it.directory, it.hub.binary):
        created = (await it.run("vm", "create", "--wait", "--json")).splitlines()
        vm = json.loads(created[-1])["vm"]
        assert vm["state"] == "VM_STATE_RUNNING"
        start = vm["vm_id"][:8]
        await it.run("container", "start", f"{start}/sandbox-live", "--image", it.image[7:19], "--wait")
        assert await it.run("exec", f"{start}/sandbox-live", "--", "echo", "hello") == b"hello\n"
        data = os.urandom(300_000)
        assert await it.run("exec", "-i", f"{start}/sandbox-live", "cat", stdin=data) == data
        await it.run("exec", f"{start}/sandbox-live", "sh", "-c", "exit 42", code=42)
        await it.run("exec", f"{start}/nobody", "true", code=125)
        too_long = await it.spawn("exec", f"{start}/sandbox-live", "echo", "a" * 65_537)
        _, said = await too_long.communicate()
        assert too_long.returncode == 2
        assert b"argv[1]: must be at most 65536 characters" in said
        await it.run("container", "stats", f"{start}/sandbox-live")
        await it.run("container", "start", f"{start}/passing", "--image", it.image[7:19])
        await it.run("container", "rm", f"{start}/passing", code=5)
        removed = await it.run("container", "rm", "--force", "--volumes", f"{start}/passing")
        assert removed.rstrip().endswith(b"/passing deleted")
        await it.run("container", "rm", f"{start}/passing", code=3)
        assert b"passing" not in await it.run("container", "ls", start)
        await it.run("vm", "health", start)
        recycled = (await it.run("vm", "recycle", start, "--wait", "--json")).splitlines()
        assert json.loads(recycled[-1])["vm"]["epoch"] == "2"
        stopped = (await it.run("vm", "stop", start, "--wait", "--json")).splitlines()
        assert json.loads(stopped[-1])["vm"]["state"] == "VM_STATE_STOPPED"
        await it.run("exec", f"{start}/sandbox-live", "true", code=125)
        await it.run("vm", "delete", start, "--wait")
        await it.run("vm", "show", start, code=3)
        assert b"DELETED" in await it.run("events")


@pytest.mark.asyncio
async def test_exec_outlives_the_hypervisor() -> None:
    """A command keeps its input and output when the hypervisor is killed and started again below it."""
    async with stage() as it, node(it.directory, it.hub.binary) as hypervisor:
        vm = await hypervisor.running()
        await hypervisor.start_container(vm.vm_id, it.image)
        command = await it.spawn("exec", "-i", f"{vm.vm_id}/app", "cat")
        assert command.stdin is not None
        assert command.stdout is not None
        async with asyncio.timeout(SECONDS):
            command.stdin.write(b"before\n")
            assert await command.stdout.readline() == b"before\n"
            await hypervisor.stop(signal.SIGKILL)
            command.stdin.write(b"meanwhile\n")
            await hypervisor.start()
            assert await command.stdout.readline() == b"meanwhile\n"
            command.stdin.write(b"after\n")
            command.stdin.close()
            assert await command.stdout.read() == b"after\n"
            assert await command.wait() == 0


@pytest.mark.asyncio
async def test_up_leaves_vms_running_and_stops_them_when_asked() -> None:
    """Ctrl-C ends the node and no VM; the next `up` takes the VM over, and with --stop-vms ends it too."""
    async with stage() as it:
        try:
            await _up_and_down(it)
        finally:
            # Whatever a failure left running belongs to this test alone.
            await Node(it.directory, it.hub.binary).end_everything()


@pytest.mark.asyncio
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_up_takes_back_what_it_had_started_when_it_is_stopped_early(number: signal.Signals) -> None:
    """A signal before the node is ready leaves no hypervisor behind, though that one has a session of its own."""
    async with stage() as it:
        process = await it.spawn("up", "--json", "--no-edge")
        async with asyncio.timeout(SECONDS):
            while (hypervisor := _hypervisor_of(process.pid)) is None:  # noqa: ASYNC110  # of another process
                await asyncio.sleep(0.01)
        process.send_signal(number)
        async with asyncio.timeout(SECONDS):
            output, _ = await process.communicate()
        assert (process.returncode, output) == (130, b"")
        assert not await runs(hypervisor)


def _hypervisor_of(parent: int) -> int | None:
    """Return the hypervisor that a process started, once it is one."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        # Before it, programs are asked for their versions, and are gone as soon as they have answered.
        with suppress(FileNotFoundError, ProcessLookupError):
            if b"cellmesh.hypervisor\0" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return None


async def _up_and_down(it: Stage) -> None:
    first = await it.spawn("up", "--json")
    await ready(first)
    created = (await it.run("vm", "create", "--wait", "--json")).splitlines()
    vmm = json.loads(created[-1])["vm"]["vmm_pid"]
    await it.run("up", code=5)
    assert await interrupt(first) == 0
    assert await runs(vmm)
    second = await it.spawn("up", "--json", "--stop-vms")
    await ready(second)
    listed = json.loads(await it.run("vm", "ls", "--json"))["vms"]
    assert [(vm["vmm_pid"], vm["state"]) for vm in listed] == [(vmm, "VM_STATE_RUNNING")]
    assert await interrupt(second) == 0
    assert not await runs(vmm)
