"""Hello and the reports, against a real gRPC server in the host's place, behind the host's acceptor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from cellmesh.api.guest.v1 import agent_service_pb2, agent_service_pb2_grpc
from cellmesh.guest.changes import Changes
from cellmesh.guest.errors import WrongEpoch
from cellmesh.guest.host import reporter as reporter_module
from cellmesh.guest.host.channel import open_channel
from cellmesh.guest.host.hello import say_hello
from cellmesh.guest.host.report import ReportLog
from cellmesh.guest.host.reporter import Reporter
from cellmesh.guest.identity import Assignment, Identity
from cellmesh.mesh.acceptor import Acceptor, Bounds
from support.local_runtime import until

_BOOT = "0b000000-0000-4000-8000-000000000000"
_VM = "0c000000-0000-4000-8000-000000000000"
_PATIENCE = 30.0


class _Host(agent_service_pb2_grpc.AgentServiceServicer):
    """Answers as the hypervisor does, and remembers; `silent` takes reports without answering."""

    def __init__(self) -> None:
        self.hellos: list[agent_service_pb2.HelloRequest] = []
        self.streams: list[list[int]] = []
        self.dropped: list[int] = []
        self.refusals = 0
        self.silent = False
        self.close_stream = asyncio.Event()

    async def Hello(
        self, request: agent_service_pb2.HelloRequest, context: grpc.aio.ServicerContext
    ) -> agent_service_pb2.HelloResponse:
        """Answer once the refusals are used up."""
        self.hellos.append(request)
        if self.refusals:
            self.refusals -= 1
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not yet")
        response = agent_service_pb2.HelloResponse(vm_id=_VM, epoch=5, protocol_version=1, discard_layers=True)
        response.heartbeat_interval.FromMilliseconds(150)
        return response

    async def Report(
        self, requests: AsyncIterator[agent_service_pb2.ReportRequest], context: grpc.aio.ServicerContext
    ) -> None:
        """Take reports until told to close the stream."""
        self.streams.append([])
        reader = asyncio.ensure_future(self._take(self.streams[-1], requests, context))
        closer = asyncio.ensure_future(self.close_stream.wait())
        await asyncio.wait({reader, closer}, return_when=asyncio.FIRST_COMPLETED)
        reader.cancel()
        closer.cancel()
        if self.close_stream.is_set():
            self.close_stream.clear()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the host restarts")

    async def _take(
        self,
        sequences: list[int],
        requests: AsyncIterator[agent_service_pb2.ReportRequest],
        context: grpc.aio.ServicerContext,
    ) -> None:
        async for request in requests:
            sequences.append(request.sequence)
            self.dropped.append(request.dropped_log_bytes)
            if not self.silent:
                await context.write(agent_service_pb2.ReportResponse(acknowledged_sequence=request.sequence))


@asynccontextmanager
async def _host(directory: Path) -> AsyncIterator[tuple[_Host, agent_service_pb2_grpc.AgentServiceAsyncStub]]:
    host = _Host()
    server = grpc.aio.server()
    agent_service_pb2_grpc.add_AgentServiceServicer_to_server(host, server)
    server.add_insecure_port(f"unix:{directory}/inner.sock")
    ends: list[str] = []
    acceptor = Acceptor(directory / "host.sock", inner=directory / "inner.sock", bounds=Bounds(), note=ends.append)
    await server.start()
    acceptor.start()
    async with open_channel(f"{directory}/host.sock") as channel:
        yield host, agent_service_pb2_grpc.AgentServiceStub(channel)
    acceptor.stop()
    await server.stop(0)
    assert ends == []


@asynccontextmanager
async def _reporting(stub: agent_service_pb2_grpc.AgentServiceAsyncStub, heartbeat: float) -> AsyncIterator[Changes]:
    identity, changes = Identity(_BOOT), Changes()
    identity.assign(Assignment(vm_id=_VM, epoch=5, discard_layers=False, heartbeat_interval=heartbeat))

    def snapshot() -> agent_service_pb2.ReportRequest:
        return agent_service_pb2.ReportRequest(vm_id=_VM, epoch=5, dropped_log_bytes=changes.version)

    reporter = Reporter(stub=stub, identity=identity, changes=changes, snapshot=snapshot, log=ReportLog())
    task = asyncio.ensure_future(reporter.run())
    try:
        yield changes
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=_PATIENCE)
        assert task.cancelled(), "it was cancelled, and goes on"


def test_sequences_have_no_gaps_and_nothing_unacknowledged_is_lost() -> None:
    """The window bounds what is in flight; an acknowledgement frees everything up to it."""
    log: ReportLog[str] = ReportLog(window=2)
    assert [log.add(text).sequence for text in "ab"] == [1, 2]
    assert not log.has_room
    assert [report.snapshot for report in log.unacknowledged] == ["a", "b"]
    log.acknowledge(1)
    log.acknowledge(0)
    assert log.has_room
    assert [report.sequence for report in log.unacknowledged] == [2]
    assert log.add("c").sequence == 3


@pytest.mark.asyncio
async def test_hello_is_said_until_it_is_answered(tmp_path: Path) -> None:
    """Refusals do not stop the agent, and the answer is taken whole."""
    async with _host(tmp_path) as (host, stub):
        host.refusals = 2
        assignment = await say_hello(stub, _BOOT)
    assert assignment == Assignment(vm_id=_VM, epoch=5, discard_layers=True, heartbeat_interval=0.15)
    assert [hello.boot_id for hello in host.hellos] == [_BOOT] * 3
    assert list(host.hellos[0].protocol_versions) == [1]


@pytest.mark.asyncio
async def test_changes_are_reported_and_come_together(tmp_path: Path) -> None:
    """A burst of changes is one or two reports, and the last of them has the last change."""
    async with _host(tmp_path) as (host, stub), _reporting(stub, heartbeat=3600.0) as changes:
        await until(lambda: host.dropped == [0])
        for _ in range(100):
            changes.notify()
        await until(lambda: host.dropped[-1] == 100)
        assert len(host.streams) == 1
        assert host.streams[0] == list(range(1, len(host.streams[0]) + 1))
        assert len(host.streams[0]) <= 3


@pytest.mark.asyncio
async def test_quiet_is_reported_too(tmp_path: Path) -> None:
    """Without changes reports go on, as heartbeats."""
    async with _host(tmp_path) as (host, stub), _reporting(stub, heartbeat=0.05):
        await until(lambda: bool(host.streams) and len(host.streams[0]) >= 5)


@pytest.mark.asyncio
async def test_what_was_not_acknowledged_is_sent_again(tmp_path: Path) -> None:
    """After the host's restart the stream is opened again, with the unanswered reports first and in order."""
    async with _host(tmp_path) as (host, stub), _reporting(stub, heartbeat=0.05):
        host.silent = True
        await until(lambda: bool(host.streams) and len(host.streams[0]) == 8)
        host.silent = False
        host.close_stream.set()
        await until(lambda: len(host.streams) == 2 and len(host.streams[1]) >= 10)
        assert host.streams[0] == list(range(1, 9))
        assert host.streams[1][:10] == list(range(1, 11))


@pytest.mark.asyncio
async def test_a_host_that_does_not_answer_gets_a_bounded_number(tmp_path: Path) -> None:
    """Changes without acknowledgements fill the window and no more; the acknowledgement brings the newest state."""
    async with _host(tmp_path) as (host, stub), _reporting(stub, heartbeat=3600.0) as changes:
        host.silent = True
        await until(lambda: bool(host.streams))

        def change_until_full() -> bool:
            changes.notify()
            return len(host.streams[0]) == 8

        await until(change_until_full)
        changes.notify()
        newest = changes.version
        host.silent = False
        host.close_stream.set()
        await until(lambda: len(host.streams) == 2 and host.dropped[-1] == newest)


@pytest.mark.asyncio
async def test_a_cancellation_is_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it comes, reporting ends with it: gRPC swallows it where a stream begins or ends."""
    monkeypatch.setattr(reporter_module, "_FIRST_PAUSE", 0.0)
    async with open_channel(f"{tmp_path}/nobody.sock") as channel:
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)
        for turns in range(200):
            async with _reporting(stub, heartbeat=3600.0):
                for _ in range(turns % 40):
                    await asyncio.sleep(0)
                await asyncio.sleep(turns % 7 * 1e-4)  # gRPC's own thread gets further, too


def test_the_wait_the_host_asks_for_is_found() -> None:
    """A RetryInfo in the trailing metadata is what the agent waits for."""
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=4)))
    details = status_pb2.Status(code=8, details=[packed]).SerializeToString()
    trailing = grpc.aio.Metadata(("other", "x"), ("grpc-status-details-bin", details))
    error = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), trailing)
    assert reporter_module._asked_pause(error) == 4.0


@pytest.mark.asyncio
async def test_only_this_epoch_is_served() -> None:
    """A call for another epoch is refused, and so is any before Hello was answered."""
    identity = Identity(_BOOT)
    waiting = asyncio.ensure_future(identity.check_epoch(5))
    await asyncio.sleep(0)
    identity.assign(Assignment(vm_id=_VM, epoch=5, discard_layers=False, heartbeat_interval=1.0))
    await waiting
    identity.assign(Assignment(vm_id=_VM, epoch=6, discard_layers=False, heartbeat_interval=1.0))
    await identity.check_epoch(5)
    for other in (0, 4, 6):
        with pytest.raises(WrongEpoch, match="epoch 5"):
            await identity.check_epoch(other)


@pytest.mark.asyncio
async def test_before_hello_no_epoch_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that comes long before the host's answer is told to try again."""
    monkeypatch.setattr("cellmesh.guest.identity._HELLO_WAIT", 0.01)
    with pytest.raises(WrongEpoch, match="no answer to its Hello"):
        await Identity(_BOOT).check_epoch(1)
