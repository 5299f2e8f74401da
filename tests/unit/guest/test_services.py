"""The agent's services over a real gRPC connection, with processes in the containers' place."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cellmesh.api.common.v1 import container_pb2, exec_pb2
from cellmesh.api.guest.v1 import (
    container_service_pb2,
    container_service_pb2_grpc,
    guest_service_pb2,
    guest_service_pb2_grpc,
)
from cellmesh.guest import boot
from cellmesh.guest.exec.sessions import Sessions
from cellmesh.guest.identity import Assignment, Identity
from cellmesh.guest.servicers.containers import GuestContainerServicer
from cellmesh.guest.servicers.guest import GuestServicer
from cellmesh.guest.servicers.health import HealthServicer
from cellmesh.guest.shutdown import Shutdown
from support.local_runtime import FIRST_PORT, IMAGE, MISSING_IMAGE, LocalCell, local_cell, until

pytestmark = pytest.mark.asyncio
_VM = "0c000000-0000-4000-8000-000000000000"
_ID = "0a000000-0000-4000-8000-000000000000"
_SPEC = container_pb2.ContainerSpec(
    image=IMAGE,
    argv=["/bin/sleep", "1000"],
    restart_policy=container_pb2.RestartPolicy(mode=container_pb2.RESTART_MODE_NEVER),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Agent:
    cell: LocalCell
    shutdown: Shutdown
    containers: Any
    guest: Any
    health: Any

    async def start(
        self, name: str = "live", generation: int = 1, spec: Any = _SPEC, epoch: int = 5, port: int = FIRST_PORT
    ) -> Any:
        request = container_service_pb2.StartContainerRequest(
            epoch=epoch, container_name=name, generation=generation, spec=spec, ingress_port=port
        )
        return await self.containers.StartContainer(request, timeout=20)


@asynccontextmanager
async def _agent(directory: Path) -> AsyncIterator[_Agent]:
    identity = Identity("0b000000-0000-4000-8000-000000000000")
    identity.assign(Assignment(vm_id=_VM, epoch=5, discard_layers=False, heartbeat_interval=1.0))
    async with local_cell() as cell:
        sessions = Sessions(cell.containers, cell.group)
        shutdown = Shutdown(cell.containers.stop_all)
        server = grpc.aio.server()
        container_service_pb2_grpc.add_GuestContainerServiceServicer_to_server(
            GuestContainerServicer(identity, cell.containers, lambda: sessions), server
        )
        guest_service_pb2_grpc.add_GuestServiceServicer_to_server(GuestServicer(identity, shutdown), server)
        server.add_generic_rpc_handlers((HealthServicer(cell.containers).handler(),))
        server.add_insecure_port(f"unix:{directory}/agent.sock")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{directory}/agent.sock") as channel:
            yield _Agent(
                cell=cell,
                shutdown=shutdown,
                containers=container_service_pb2_grpc.GuestContainerServiceStub(channel),
                guest=guest_service_pb2_grpc.GuestServiceStub(channel),
                health=health_pb2_grpc.HealthStub(channel),
            )
        await server.stop(0)
        sessions.stop()


def _refusal(error: grpc.aio.AioRpcError) -> tuple[str, str, str]:
    details = {key: value for key, value in error.trailing_metadata()}  # type: ignore[misc]  # noqa: C416
    status = status_pb2.Status.FromString(details["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    return error.code().name, info.reason, info.domain


_BAD_STARTS = [
    ({"epoch": 4}, ("FAILED_PRECONDITION", "WRONG_EPOCH", "guest.cellmesh")),
    ({"name": "../x"}, ("INVALID_ARGUMENT", "INVALID_REQUEST", "cellmesh")),
    ({"name": "a\n"}, ("INVALID_ARGUMENT", "INVALID_REQUEST", "cellmesh")),
    ({"generation": 0}, ("INVALID_ARGUMENT", "INVALID_REQUEST", "cellmesh")),
    *(
        ({"port": port}, ("INVALID_ARGUMENT", "INVALID_REQUEST", "cellmesh"))
        for port in (0, 1024, 65535, (1 << 32) - 1)
    ),
    (
        {"spec": container_pb2.ContainerSpec(image=IMAGE, http_port=65536)},
        ("INVALID_ARGUMENT", "INVALID_REQUEST", "cellmesh"),
    ),
    ({"spec": container_pb2.ContainerSpec(image="../../x")}, ("INVALID_ARGUMENT", "INVALID_REQUEST", "cellmesh")),
    ({"spec": container_pb2.ContainerSpec(image=MISSING_IMAGE)}, ("NOT_FOUND", "IMAGE_NOT_ATTACHED", "guest.cellmesh")),
    (
        {"spec": container_pb2.ContainerSpec(image=IMAGE, argv=["/nowhere"])},
        ("FAILED_PRECONDITION", "CONTAINER_START_FAILED", "guest.cellmesh"),
    ),
    *(
        (
            {
                "spec": container_pb2.ContainerSpec(
                    image=IMAGE, persistent_paths=[container_pb2.PersistentPath(path=path)]
                )
            },
            ("INVALID_ARGUMENT", "INVALID_REQUEST", "cellmesh"),
        )
        for path in ("/a/../../etc", "relative", "/a//b", "/", "/a\n")
    ),
]


@pytest.mark.parametrize(("arguments", "expected"), _BAD_STARTS)
async def test_a_bad_start_is_a_typed_refusal(
    tmp_path: Path, arguments: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    """Code, reason and domain are the contract's, in a Status the host can read."""
    async with _agent(tmp_path) as agent:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await agent.start(**arguments)
        assert _refusal(caught.value) == expected
        assert agent.cell.runtime.started == []


async def test_a_container_is_started_listed_and_stopped(tmp_path: Path) -> None:
    """The answers carry the status the contract promises."""
    async with _agent(tmp_path) as agent:
        started = (await agent.start()).status
        assert (started.state, started.generation) == (container_pb2.CONTAINER_STATE_RUNNING, 1)
        assert started.start_time.seconds > 0
        listed = await agent.containers.ListContainers(container_service_pb2.ListContainersRequest(), timeout=20)
        assert list(listed.containers) == [started]
        request = container_service_pb2.StopContainerRequest(epoch=5, container_name="live")
        stopped = (await agent.containers.StopContainer(request, timeout=20)).status
        assert (stopped.state, stopped.exit_code) == (container_pb2.CONTAINER_STATE_STOPPED, 143)


async def test_a_command_runs_over_the_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input, output, acknowledgements and the exit code travel as the contract's frames."""
    # The last acknowledgement of a caller that is held up still meets a stream that is open.
    monkeypatch.setattr("cellmesh.guest.servicers.exec._LAST_WORDS", 20.0)
    async with _agent(tmp_path) as agent:
        await agent.start()
        call = agent.containers.Exec(timeout=20)
        opening = exec_pb2.ExecOpen(vm_id=_VM, container_name="live", exec_id=_ID, argv=["/bin/cat"])
        await _send(call, open=opening)
        await _send(call, stdin=exec_pb2.ExecStdin(offset=0, data=b"hello", eof=True))
        frames = []
        async for response in call:
            frames.append(response.output)
            if response.output.HasField("data"):
                end = response.output.data.offset + len(response.output.data.data)
                await _send(call, ack=exec_pb2.ExecAck(stdout_offset=end))
        assert frames[0].opened == exec_pb2.ExecOpened(resumed=False, stdin_offset=0)
        assert b"".join(frame.data.data for frame in frames) == b"hello"
        assert [frame.stdin_ack.offset for frame in frames if frame.HasField("stdin_ack")][-1] == 5
        assert frames[-1].exited == exec_pb2.ExecExited(exit_code=0, stdout_length=5)


async def _send(call: Any, **frame: Any) -> None:
    await call.write(container_service_pb2.ExecRequest(input=exec_pb2.ExecInput(**frame)))


_BAD_FRAMES = [
    ({"ack": exec_pb2.ExecAck()}, None, ("INVALID_ARGUMENT", "INVALID_REQUEST")),
    ({"open": exec_pb2.ExecOpen(container_name="live", exec_id=_ID)}, None, ("INVALID_ARGUMENT", "INVALID_REQUEST")),
    (
        {"open": exec_pb2.ExecOpen(container_name="gone", exec_id=_ID, argv=["x"])},
        None,
        ("NOT_FOUND", "CONTAINER_NOT_FOUND"),
    ),
    (
        {"open": exec_pb2.ExecOpen(container_name="live", exec_id=_ID, argv=["x"], resume=True)},
        None,
        ("NOT_FOUND", "EXEC_NOT_FOUND"),
    ),
    (
        {"open": exec_pb2.ExecOpen(container_name="live", exec_id=_ID, argv=["/nowhere"])},
        None,
        ("FAILED_PRECONDITION", "EXEC_START_FAILED"),
    ),
    (
        {"open": exec_pb2.ExecOpen(container_name="live", exec_id=_ID, argv=["/bin/cat"])},
        {"stdin": exec_pb2.ExecStdin(offset=7, data=b"gap")},
        ("OUT_OF_RANGE", "EXEC_OFFSET_GONE"),
    ),
    (
        {"open": exec_pb2.ExecOpen(container_name="live", exec_id=_ID, argv=["/bin/cat"])},
        {"signal": exec_pb2.ExecSignal(number=64)},
        ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    ),
    (
        {"open": exec_pb2.ExecOpen(container_name="live", exec_id=_ID, argv=["/bin/cat"])},
        {"open": exec_pb2.ExecOpen()},
        ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    ),
]


@pytest.mark.parametrize(("first", "second", "expected"), _BAD_FRAMES)
async def test_a_bad_frame_is_a_typed_refusal(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any] | None, expected: tuple[str, str]
) -> None:
    """Whatever is wrong with a frame ends the stream with the contract's reason."""
    async with _agent(tmp_path) as agent:
        await agent.start()
        call = agent.containers.Exec(timeout=20)
        await _send(call, **first)
        if second is not None:
            await _send(call, **second)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [frame async for frame in call]
        assert _refusal(caught.value)[:2] == expected


async def test_logs_are_followed_to_the_end_of_a_generation(tmp_path: Path) -> None:
    """A reader sees everything once, and the stream ends with the generation."""
    spec = container_pb2.ContainerSpec()
    spec.CopyFrom(_SPEC)
    spec.argv[:] = ["/bin/sh", "-c", "for i in 1 2 3; do echo $i; done"]
    async with _agent(tmp_path) as agent:
        await agent.start(spec=spec)
        request = container_service_pb2.StreamLogsRequest(container_name="live", follow=True)
        responses = [response async for response in agent.containers.StreamLogs(request, timeout=20)]
        data = b"".join(chunk.data for response in responses for chunk in response.chunks)
        assert data == b"1\n2\n3\n"
        assert responses[-1].next_offset == 6
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await agent.containers.StreamLogs(
                container_service_pb2.StreamLogsRequest(container_name="live", generation=9), timeout=5
            ).read()
        assert _refusal(caught.value)[:2] == ("NOT_FOUND", "GENERATION_NOT_FOUND")


async def test_numbers_are_of_running_containers(tmp_path: Path) -> None:
    """Stats are the cgroup's, and a stopped container has none."""
    async with _agent(tmp_path) as agent:
        await agent.start()
        (container,) = agent.cell.runtime.started
        for name, text in {"memory.current": "5", "memory.peak": "6", "memory.max": "max", "pids.current": "1"}.items():
            (container.cgroup.path / name).write_text(text)
        request = container_service_pb2.GetStatsRequest(container_name="live")
        stats = (await agent.containers.GetStats(request, timeout=20)).stats
        assert (stats.memory_bytes, stats.memory_peak_bytes, stats.memory_limit_bytes, stats.pids) == (5, 6, 0, 1)
        await agent.cell.containers.stop("live")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await agent.containers.GetStats(request, timeout=20)
        assert _refusal(caught.value)[:2] == ("FAILED_PRECONDITION", "CONTAINER_NOT_RUNNING")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV], ids=["before", "meanwhile"])
async def test_numbers_of_a_container_that_ends_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A cgroup that goes before or while it is read says that its container does not run, and is no fault of ours."""
    read = Path.read_text
    async with _agent(tmp_path) as agent:
        await agent.start()
        (container,) = agent.cell.runtime.started

        def gone(path: Path, *args: Any, **options: Any) -> str:
            if path.parent == container.cgroup.path:
                raise OSError(number, os.strerror(number), path)
            return read(path, *args, **options)

        monkeypatch.setattr(Path, "read_text", gone)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await agent.containers.GetStats(container_service_pb2.GetStatsRequest(container_name="live"), timeout=20)
        monkeypatch.undo()
        assert _refusal(caught.value)[:2] == ("FAILED_PRECONDITION", "CONTAINER_NOT_RUNNING")


async def test_a_traced_call_gets_the_guests_span(tmp_path: Path) -> None:
    """Only a caller that sends a traceparent is told id, start and duration."""
    async with _agent(tmp_path) as agent:
        for metadata, expected in ((), 0), ((("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"),), 1):
            call = agent.containers.ListContainers(
                container_service_pb2.ListContainersRequest(), timeout=20, metadata=metadata
            )
            await call
            spans = [value for key, value in await call.trailing_metadata() if key == "cellmesh-guest-span"]
            assert len(spans) == expected
        span, start, duration = spans[0].split(" ")
        assert len(bytes.fromhex(span)) == 8
        assert (int(start), int(duration) >= 0) == (0, True)


async def test_health_is_the_real_protocol(tmp_path: Path) -> None:
    """The official client reads the hand-made answers, for the agent, a container, and a name nobody has."""
    async with _agent(tmp_path) as agent:
        check = health_pb2.HealthCheckRequest
        assert (await agent.health.Check(check(), timeout=20)).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await agent.health.Check(check(service="live"), timeout=20)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = agent.health.Watch(check(service="live"), timeout=20)
        seen = [(await watch.read()).status]
        await agent.start()
        while seen[-1] != health_pb2.HealthCheckResponse.SERVING:
            seen.append((await watch.read()).status)
        await agent.cell.containers.stop("live")
        seen.append((await watch.read()).status)
        watch.cancel()
        assert seen[0] == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        assert seen[-1] == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_the_machine_tells_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GetInfo is within what the contract allows, with numbers of this machine."""
    monkeypatch.setattr(boot, "DATA", str(tmp_path))
    async with _agent(tmp_path) as agent:
        info = await agent.guest.GetInfo(guest_service_pb2.GetInfoRequest(), timeout=20)
        assert info.memory_total_bytes > info.memory_available_bytes > 0
        assert info.disk_total_bytes >= info.disk_available_bytes > 0
        assert info.agent_rss_bytes > 1 << 20
        assert info.agent_module_count > 100


async def test_a_shutdown_stops_every_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer comes once all have stopped and the disks are flushed; of another epoch nothing happens."""
    flushed: list[bool] = []
    monkeypatch.setattr("cellmesh.guest.shutdown._flush", lambda: flushed.append(agent.cell.runtime.started[0].removed))
    async with _agent(tmp_path) as agent:
        await agent.start()
        with pytest.raises(grpc.aio.AioRpcError):
            await agent.guest.Shutdown(guest_service_pb2.ShutdownRequest(epoch=4), timeout=20)
        assert not agent.shutdown.finished.is_set()
        for _ in range(2):
            await agent.guest.Shutdown(guest_service_pb2.ShutdownRequest(epoch=5), timeout=20)
        assert agent.shutdown.finished.is_set()
        assert flushed == [True]
        await until(lambda: not agent.cell.containers.find("live").running)


async def test_logs_without_follow_end_while_the_container_goes_on(tmp_path: Path) -> None:
    """A reader who does not follow gets what was there, even of a container that never stops talking."""
    spec = container_pb2.ContainerSpec()
    spec.CopyFrom(_SPEC)
    spec.argv[:] = ["/bin/sh", "-c", "while :; do echo more; done"]
    async with _agent(tmp_path) as agent:
        await agent.start(spec=spec)
        found = agent.cell.containers.logs("live").find(0)
        assert found is not None
        await until(lambda: found[1].end > 0)
        request = container_service_pb2.StreamLogsRequest(container_name="live")
        responses = [response async for response in agent.containers.StreamLogs(request, timeout=20)]
        assert responses[-1].next_offset > 0
