"""Containers in a real guest: contained when they misbehave, watched, restarted, counted, and heard."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from cellmesh.api.common.v1 import container_pb2, exec_pb2, health_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2, vm_service_pb2
from cellmesh.mesh.errors import MeshError
from support import walls
from support.cell import Cell
from support.commands import ExecStream

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module")]

SLOW = 30.0
"""Deadline of a call to a guest that a hog or a bomb keeps busy, seconds."""
MEMORY_LIMIT = 64 << 20
FOREVER = ("sleep", "86400")
AT_ONCE = timedelta(milliseconds=10)
LINES = 60_000
WELL, ILL = health_pb2.HEALTH_STATUS_SERVING, health_pb2.HEALTH_STATUS_NOT_SERVING
STOPPED, FAILED = container_pb2.CONTAINER_STATE_STOPPED, container_pb2.CONTAINER_STATE_FAILED


async def health(cell: Cell) -> vm_service_pb2.CheckVmHealthResponse:
    """Probe the VM now."""
    return await cell.it.vms.CheckVmHealth(vm_service_pb2.CheckVmHealthRequest(vm_id=cell.vm_id), timeout=SLOW)


async def stats(cell: Cell, name: str) -> container_pb2.ContainerStats:
    """Return what a container uses."""
    request = container_service_pb2.GetStatsRequest(vm_id=cell.vm_id, container_name=name)
    return (await cell.it.containers.GetStats(request, timeout=SLOW / 2)).stats


async def test_a_memory_hog_harms_only_itself(cell: Cell) -> None:
    """Prove that a command over its container's memory is killed and told so, and that nothing else notices."""
    # Both have been probed by then: what comes after is the hog's doing.
    names = ("sandbox-live", "sandbox-dev")
    before = {name: await cell.until(name, lambda status: status.health == WELL) for name in names}
    async with asyncio.TaskGroup() as group:
        hog = group.create_task(cell.live.run("python3", "-c", walls.HOG))
        while not hog.done():
            assert await cell.dev.shell("echo well") == "well"
    assert (hog.result().exit_code, hog.result().oom_killed) == (137, True)
    live = await cell.until("sandbox-live", lambda status: status.oom_kills > 0)
    assert live.status.state == container_pb2.CONTAINER_STATE_RUNNING
    assert (live.generation, live.status.restart_count) == (before["sandbox-live"].generation, 0)
    assert [
        event.container_oom_killed.oom_kills
        for event in await cell.events("sandbox-live")
        if event.HasField("container_oom_killed")
    ] == [1]
    dev = await cell.until("sandbox-dev", lambda _: True)
    assert dev.status == before["sandbox-dev"].status
    assert (await stats(cell, "sandbox-live")).oom_kills == 1


async def test_a_container_killed_for_memory_says_so(cell: Cell) -> None:
    """Prove that a container whose own process is too large ends as OOM_KILLED, with what to do about it."""
    never = container_pb2.RestartPolicy(mode=container_pb2.RESTART_MODE_NEVER)
    limits = container_pb2.ContainerResources(memory_bytes=MEMORY_LIMIT)
    await cell.start("hog", "python3", "-c", walls.HOG, resources=limits, restart_policy=never)
    status = (await cell.until("hog", lambda status: status.state == STOPPED)).status
    assert (status.reason, status.exit_code, status.oom_kills) == ("OOM_KILLED", 137, 1)
    assert "raise memory_bytes above 64 MiB" in status.message


async def test_a_fork_bomb_harms_only_itself(cell: Cell) -> None:
    """Prove that a fork bomb stays within its limit, that siblings answer meanwhile, and that a stop ends it all."""
    limits = container_pb2.ContainerResources(pids=40)
    async with cell.running("bomb", "python3", "-c", walls.BOMB, resources=limits), asyncio.timeout(SLOW * 4):
        while (used := await stats(cell, "bomb")).pids_refused < 3:
            assert used.pids <= 40
        assert await cell.dev.shell("echo well") == "well"
        assert (await health(cell)).status == WELL
    await cell.until("bomb", lambda status: status.state == STOPPED)
    with pytest.raises(MeshError) as error:
        await stats(cell, "bomb")
    assert error.value.reason == "CONTAINER_NOT_RUNNING"


async def test_a_probe_says_when_a_container_falls_ill_and_recovers(cell: Cell) -> None:
    """Prove that health follows the probe both ways, in the container, in the VM's health and as events."""
    probe = container_pb2.HealthProbe(
        exec=container_pb2.ExecProbe(argv=["test", "!", "-e", "/tmp/ill"]),
        interval=timedelta(milliseconds=200),
        timeout=timedelta(seconds=30),
        failure_threshold=2,
    )
    scripts = ("true", "touch /tmp/ill", "rm /tmp/ill")
    async with cell.running("patient", *FOREVER, probe=probe) as box:
        for script, wanted in zip(scripts, (WELL, ILL, WELL), strict=True):
            await box.shell(script)
            await cell.until("patient", lambda status, wanted=wanted: status.health == wanted)
            assert (await health(cell)).status == wanted
    told = [
        event.container_health_changed.to
        for event in await cell.events("patient")
        if event.HasField("container_health_changed")
    ]
    assert told[:3] == [WELL, ILL, WELL]


async def test_http_and_tcp_probes_ask_inside_the_container(cell: Cell) -> None:
    """Prove that a probe meets its own container's port, not a sibling's of the same number."""
    await cell.until("sandbox-live", lambda status: status.health == WELL)
    probe = container_pb2.HealthProbe(
        tcp=container_pb2.TcpProbe(port=8080), interval=timedelta(milliseconds=100), failure_threshold=2
    )
    async with cell.running("silent", *FOREVER, probe=probe):
        await cell.until("silent", lambda status: status.health == ILL)


@pytest.mark.parametrize(
    ("mode", "code", "wanted"),
    [
        (container_pb2.RESTART_MODE_ON_FAILURE, 3, (FAILED, 3, 2)),
        (container_pb2.RESTART_MODE_ON_FAILURE, 0, (STOPPED, 0, 0)),
        (container_pb2.RESTART_MODE_ALWAYS, 0, (FAILED, 0, 2)),
        (container_pb2.RESTART_MODE_NEVER, 3, (STOPPED, 3, 0)),
    ],
)
async def test_a_container_that_ends_is_restarted_by_its_policy(
    cell: Cell,
    mode: container_pb2.RestartMode,
    code: int,
    wanted: tuple[container_pb2.ContainerState, int, int],
) -> None:
    """Prove how often each policy starts a container again, and how it says that it gave up."""
    policy = container_pb2.RestartPolicy(mode=mode, max_restarts=2, initial_backoff=AT_ONCE, max_backoff=AT_ONCE)
    async with cell.running("mortal", "sh", "-c", f"exit {code}", restart_policy=policy):
        status = (await cell.until("mortal", lambda status: status.state in {FAILED, STOPPED})).status
    assert (status.state, status.exit_code, status.restart_count) == wanted
    assert f"exit code {code}" in status.message


async def test_stats_are_the_containers_own(cell: Cell) -> None:
    """Prove that limits are as asked, that use is not nothing, and that work shows as CPU time of who did it."""
    limits = container_pb2.ContainerResources(memory_bytes=MEMORY_LIMIT, pids=20)
    async with cell.running("worker", *FOREVER, resources=limits) as box:
        # The process by which crun gave the agent its seccomp filter may take a moment to end.
        async with asyncio.timeout(SLOW):
            while (before := await stats(cell, "worker")).pids != 1:
                assert before.pids <= 2
        await box.shell("i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done")
        after = await stats(cell, "worker")
    assert before.memory_limit_bytes == MEMORY_LIMIT
    assert after.cpu_time.ToTimedelta() > before.cpu_time.ToTimedelta()
    assert 0 < before.memory_bytes <= after.memory_peak_bytes <= MEMORY_LIMIT


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HARMLESS"])
async def test_a_container_with_a_provider_key_does_not_start(cell: Cell, name: str) -> None:
    """Prove that a key is refused by the variable's name or by its value, and that the value is not repeated."""
    value = "sk-" + "a1B2" * 8
    variable = container_pb2.EnvironmentVariable(name=name, value=value)
    with pytest.raises(MeshError) as error:
        await cell.start("keyed", *FOREVER, environment=[variable])
    assert error.value.reason == "PROVIDER_KEY_PRESENT"
    assert name in error.value.message
    assert value not in error.value.message
    assert value not in cell.it.log.read_text()


async def test_logs_resume_where_a_broken_stream_left_them(cell: Cell) -> None:
    """Prove that a reader who comes back with the last offset gets every byte once, while the container writes."""
    wanted = "".join(f"{number}\n" for number in range(1, LINES + 1)).encode()
    writes = ("sh", "-c", f"seq {LINES}; exec sleep 86400")
    request = container_service_pb2.StreamLogsRequest(vm_id=cell.vm_id, container_name="talker", follow=True)
    got, breaks = b"", 0
    async with cell.running("talker", *writes), asyncio.timeout(SLOW * 4):
        while len(got) < len(wanted):
            stream = cell.it.containers.StreamLogs(request)
            async for answer in stream:
                assert answer.skipped_bytes == 0
                for chunk in answer.chunks:
                    assert chunk.offset == len(got)
                    got += chunk.data
                request.offset, request.generation = answer.next_offset, answer.generation
                if answer.chunks:
                    break
            stream.cancel()
            breaks += 1
    assert got == wanted
    assert breaks > 2


async def test_a_stopped_container_keeps_its_files_and_gets_a_new_generation(cell: Cell) -> None:
    """Prove that stop and start keep the writable layer, end every process and count a generation."""
    async with cell.running("lasting", *FOREVER) as box:
        await box.shell("echo kept > /tmp/file")
        async with ExecStream(cell.it, box.opening("sh", "-c", "echo up; exec sleep 87654")) as stream:
            await stream.read()
            await stream.read_until(b"up\n")
            assert (await cell.stop("lasting")).state == STOPPED
            exited = await stream.read_exited()
        assert exited == exec_pb2.ExecExited(exit_code=137, stdout_length=3)
    async with cell.running("lasting", *FOREVER) as box:
        assert await box.shell("cat /tmp/file") == "kept"
        assert (await stats(cell, "lasting")).pids == 1
        assert (await cell.until("lasting", lambda _: True)).generation == 2
