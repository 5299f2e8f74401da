"""The listeners of a service know who calls, hold their sockets alone, and end without losing a call."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import stat
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cellmesh.api.common.v1 import container_pb2
from cellmesh.api.common.v1 import health_pb2 as health_status_pb2
from cellmesh.api.guest.v1 import agent_service_pb2, agent_service_pb2_grpc
from cellmesh.api.hypervisor.v1 import (
    route_service_pb2,
    route_service_pb2_grpc,
    vm_service_pb2,
    vm_service_pb2_grpc,
)
from cellmesh.mesh import interceptor, status
from cellmesh.mesh.channel import unix_channel
from cellmesh.mesh.errors import DeadlineExceeded, DownstreamUnavailable, RemoteError
from cellmesh.mesh.identity import EDGE, OPERATOR, User, caller
from cellmesh.mesh.logs import LineBudget
from cellmesh.mesh.policy import MethodPolicy, PolicyMissing, policy_of
from cellmesh.mesh.server import GuestServer, MeshServer
from cellmesh.mesh.unix_socket import SocketUnavailable
from cellmesh.mesh.validation import check_request
from support.route_service import ACTIVATE, Routes
from support.vm_service import GET, Vms

_PATIENCE = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give a path for the operator socket."""
    return tmp_path / "operator.sock"


def _server(vms: Vms, path: Path) -> MeshServer:
    server = MeshServer([vms.register])
    server.add_operator_socket(path)
    return server


async def _services(channel: grpc.aio.Channel) -> list[str]:
    """Ask a server by reflection what it serves."""

    async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    async for answer in stub.ServerReflectionInfo(ask()):
        return [service.name for service in answer.list_services_response.service]
    return []


@pytest.mark.asyncio
async def test_operator_socket_is_the_operators_alone(path: Path) -> None:
    """Only its owner may connect, and whoever does is the operator, acting for the user whom the request names."""
    seen = []

    async def note() -> None:
        seen.append(caller())

    async with _server(Vms(note), path), unix_channel(path, downstream="d") as channel:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await vm_service_pb2_grpc.VmServiceStub(channel).GetVm(GET, timeout=_PATIENCE)
    assert seen == [replace(OPERATOR, user=User(user_id=GET.user_id, named_by_operator=True))]
    assert not path.exists()


@pytest.mark.asyncio
async def test_operator_finds_the_standard_services(path: Path) -> None:
    """Reflection lists what is served, health answers for each service, channelz is there."""
    async with _server(Vms(), path), unix_channel(path, downstream="d") as channel:
        served = await _services(channel)
        assert {"cellmesh.api.hypervisor.v1.VmService", "grpc.channelz.v1.Channelz"} < set(served)
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "cellmesh.api.hypervisor.v1.VmService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.asyncio
async def test_socket_that_is_served_is_not_taken(path: Path) -> None:
    """A second server is refused the path, and the first goes on."""
    async with _server(Vms(), path), unix_channel(path, downstream="d") as channel:
        with pytest.raises(SocketUnavailable, match="another process"):
            _server(Vms(), path)
        await vm_service_pb2_grpc.VmServiceStub(channel).GetVm(GET, timeout=_PATIENCE)


@pytest.mark.asyncio
async def test_another_uid_can_take_only_so_many_connections(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may connect to a role's socket gets 64 connections, and one again when one ends. Control: without, all."""

    async def held(stack: contextlib.AsyncExitStack) -> tuple[list[socket.socket], int]:
        server = MeshServer([])
        server.add_unix_socket(path, services=[Routes().register], caller=EDGE)
        await stack.enter_async_context(server)
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(100)]
        for client in clients:
            client.settimeout(_PATIENCE)
            client.connect(str(path))
        # A server begins with its settings; one that is closed at once has none.
        begun = await asyncio.gather(*(asyncio.to_thread(client.recv, 9) for client in clients))
        return [client for client, first in zip(clients, begun, strict=True) if first], begun.count(b"")

    async with contextlib.AsyncExitStack() as stack:
        served, refused = await held(stack)
        assert (len(served), refused) == (64, 36)
        for client in served:
            client.close()
        async with unix_channel(path, downstream="d") as channel:
            await channel.channel_ready()
    monkeypatch.setattr("cellmesh.mesh.server._ROLE_CONNECTIONS", 1 << 20)
    async with contextlib.AsyncExitStack() as stack:
        assert len((await held(stack))[0]) == 100


@pytest.mark.asyncio
async def test_guest_is_known_by_its_socket_and_gets_no_more(tmp_path: Path) -> None:
    """A call on a VM's socket is that VM's agent, who may call nothing of the operator's and look at nothing."""
    vms = Vms()
    server = GuestServer(tmp_path / "guest.sock", [vms.register], vm_id="vm-1", inner=tmp_path / "inner")
    await server.start()
    try:
        async with unix_channel(tmp_path / "guest.sock", downstream="d") as channel:
            with pytest.raises(RemoteError) as refusal:
                await vm_service_pb2_grpc.VmServiceStub(channel).GetVm(GET, timeout=_PATIENCE)
            assert refusal.value.reason == "CALLER_NOT_ALLOWED"
            with pytest.raises(RemoteError):
                await _services(channel)
    finally:
        await server.stop()
    assert vms.asked == 0


@pytest.mark.asyncio
async def test_guests_message_is_small_or_refused(tmp_path: Path) -> None:
    """A message above 72 KiB never reaches a servicer."""
    server = GuestServer(tmp_path / "guest.sock", [Vms().register], vm_id="vm-1", inner=tmp_path / "inner")
    await server.start()
    try:
        async with unix_channel(tmp_path / "guest.sock", downstream="d") as channel:
            request = vm_service_pb2.WatchVmsRequest(resume_token=b"x" * 74_000)
            with pytest.raises(RemoteError) as refusal:
                await anext(aiter(vm_service_pb2_grpc.VmServiceStub(channel).WatchVms(request)))
        assert refusal.value.code.name == "RESOURCE_EXHAUSTED"
    finally:
        await server.stop()


@pytest.mark.asyncio
async def test_guests_longest_report_passes_again_and_again(tmp_path: Path) -> None:
    """The longest report of the contract fits, and a fast guest is never asked for longer frames than it may send."""
    report = agent_service_pb2.ReportRequest(vm_id=str(uuid.uuid4()), epoch=2**64 - 1, sequence=2**64 - 1)
    for number in range(16):
        container = report.containers.add(
            container_name="c" * 30 + f"{number:02}",
            generation=2**64 - 1,
            state=container_pb2.CONTAINER_STATE_RUNNING,
            health=health_status_pb2.HEALTH_STATUS_SERVING,
            exit_code=255,
            restart_count=2**32 - 1,
            oom_kills=2**32 - 1,
            reason="R" * 64,
            message="\U0001f600" * 1024,
        )
        container.start_time.FromJsonString("9999-12-31T23:59:59.999999999Z")
    check_request(report)
    heard = []

    class Agent(agent_service_pb2_grpc.AgentServiceServicer):
        async def Report(self, request_iterator: Any, _: Any) -> AsyncIterator[agent_service_pb2.ReportResponse]:
            async for request in request_iterator:
                heard.append(request)
                yield agent_service_pb2.ReportResponse(acknowledged_sequence=1)

    register = functools.partial(agent_service_pb2_grpc.add_AgentServiceServicer_to_server, Agent())
    server = GuestServer(tmp_path / "guest.sock", [register], vm_id="vm-1", inner=tmp_path / "inner")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/guest.sock") as channel:
            call = agent_service_pb2_grpc.AgentServiceStub(channel).Report(iter([report] * 30), timeout=_PATIENCE)
            assert len([answer async for answer in call]) == 30
    finally:
        await server.stop()
    assert heard == [report] * 30


@pytest.mark.asyncio
async def test_guests_server_is_reached_by_its_own_socket_only(tmp_path: Path) -> None:
    """The socket behind lies where its directory lets nobody in; what a dead process left there is replaced."""
    inner = tmp_path / "ours" / "inner"
    inner.parent.mkdir(mode=0o700)
    inner.write_text("left")
    server = GuestServer(tmp_path / "guest.sock", [Vms().register], vm_id="vm-1", inner=inner)
    await server.start()
    try:
        assert stat.S_ISSOCK(inner.stat().st_mode)
    finally:
        await server.stop()
    assert not inner.exists()
    assert not (tmp_path / "guest.sock").exists()


@pytest.mark.asyncio
async def test_guests_message_is_not_unpacked(tmp_path: Path) -> None:
    """A few kilobytes that unpack to megabytes are refused: no compression is spoken with a guest."""
    server = GuestServer(tmp_path / "guest.sock", [Vms().register], vm_id="vm-1", inner=tmp_path / "inner")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(
            f"unix:{tmp_path}/guest.sock", compression=grpc.Compression.Gzip
        ) as channel:
            request = vm_service_pb2.WatchVmsRequest(resume_token=b"x" * 100_000)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await anext(aiter(vm_service_pb2_grpc.VmServiceStub(channel).WatchVms(request)))
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await server.stop()


@pytest.mark.asyncio
async def test_guest_cannot_fill_the_log(tmp_path: Path) -> None:
    """A guest whose every call is refused gets a few lines, and a count of those left out."""
    now = [0.0]
    budget = LineBudget(burst=2, interval=1.0, clock=lambda: now[0])
    assert [budget.take() for _ in range(5)] == [0, 0, None, None, None]
    now[0] = 1.5
    assert [budget.take() for _ in range(2)] == [3, None]
    server = GuestServer(tmp_path / "guest.sock", [Vms().register], vm_id="vm-1", inner=tmp_path / "inner")
    await server.start()
    try:
        with structlog.testing.capture_logs() as lines:
            async with unix_channel(tmp_path / "guest.sock", downstream="d") as channel:
                stub = vm_service_pb2_grpc.VmServiceStub(channel)
                for _ in range(100):
                    with pytest.raises(RemoteError):
                        await stub.GetVm(GET, timeout=_PATIENCE)
    finally:
        await server.stop()
    assert 20 <= sum(line["event"] == "call.refused" for line in lines) < 40


@pytest.mark.asyncio
async def test_further_socket_serves_what_it_was_given_to_whom_it_is_for(path: Path, tmp_path: Path) -> None:
    """On the edge's socket a caller is the edge, may do what the edge may, and finds nothing else of the server."""
    edge, vms, routes = tmp_path / "edge.sock", Vms(), Routes()
    server = _server(vms, path)
    server.add_unix_socket(edge, services=[routes.register], caller=EDGE)
    async with server, unix_channel(edge, downstream="d") as channel:
        assert stat.S_IMODE(edge.stat().st_mode) == 0o660
        stub = route_service_pb2_grpc.RouteServiceStub(channel)
        await stub.ActivateRoute(ACTIVATE, timeout=_PATIENCE)
        with pytest.raises(RemoteError) as refusal:
            await stub.GetRoute(route_service_pb2.GetRouteRequest(vm_id=ACTIVATE.user_id, prefix="/"))
        assert refusal.value.reason == "CALLER_NOT_ALLOWED"
        absent = (
            vm_service_pb2_grpc.VmServiceStub(channel).GetVm(GET, timeout=_PATIENCE),
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()),
            _services(channel),
        )
        for call in absent:
            with pytest.raises(RemoteError) as refusal:
                await call
            assert refusal.value.code.name == "UNIMPLEMENTED"
    assert (routes.callers, vms.asked) == ({EDGE}, 0)
    assert not edge.exists()


@pytest.mark.asyncio
async def test_operator_does_not_find_what_a_further_socket_serves(path: Path, tmp_path: Path) -> None:
    """What was added for the edge alone is on no other listener."""
    server = _server(Vms(), path)
    server.add_unix_socket(tmp_path / "edge.sock", services=[Routes().register], caller=EDGE)
    async with server, unix_channel(path, downstream="d") as channel:
        with pytest.raises(RemoteError) as refusal:
            await route_service_pb2_grpc.RouteServiceStub(channel).ActivateRoute(ACTIVATE)
        assert refusal.value.code.name == "UNIMPLEMENTED"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a socket to another group")
@pytest.mark.parametrize("gid", [None, 599_999])
@pytest.mark.asyncio
async def test_further_socket_belongs_to_the_group_it_is_for(path: Path, gid: int | None) -> None:
    """Its group is the one named, and its owner stays the process's own."""
    server = MeshServer([])
    server.add_unix_socket(path, services=[Routes().register], caller=EDGE, gid=gid)
    async with server:
        found = path.stat()
    assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid() if gid is None else gid)
    assert stat.S_IMODE(found.st_mode) == 0o660


@pytest.mark.asyncio
async def test_further_socket_cannot_fill_the_log(path: Path) -> None:
    """Whoever stands behind the edge and is refused again and again gets a few lines."""
    server = MeshServer([])
    server.add_unix_socket(path, services=[Routes().register], caller=EDGE)
    with structlog.testing.capture_logs() as lines:
        async with server, unix_channel(path, downstream="d") as channel:
            stub = route_service_pb2_grpc.RouteServiceStub(channel)
            for _ in range(100):
                with pytest.raises(RemoteError):
                    await stub.ActivateRoute(route_service_pb2.ActivateRouteRequest(), timeout=_PATIENCE)
    assert 20 <= sum(line["event"] == "call.refused" for line in lines) < 40


@pytest.mark.asyncio
async def test_stop_lets_calls_end(path: Path) -> None:
    """A call that runs when the server stops gets its answer, and a watcher of health hears NOT_SERVING first."""
    go = asyncio.Event()

    async def wait() -> None:
        await go.wait()

    vms = Vms(wait)
    server = _server(vms, path)
    await server.start()
    async with unix_channel(path, downstream="d") as channel:
        health = aiter(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()))
        assert (await anext(health)).status == health_pb2.HealthCheckResponse.SERVING
        async with asyncio.timeout(_PATIENCE), asyncio.TaskGroup() as tasks:
            call = tasks.create_task(vm_service_pb2_grpc.VmServiceStub(channel).GetVm(GET, timeout=_PATIENCE))
            await vms.entered.wait()
            tasks.create_task(server.stop(_PATIENCE))
            assert (await anext(health)).status == health_pb2.HealthCheckResponse.NOT_SERVING
            go.set()
            await call
            await health.aclose()  # type: ignore[attr-defined]  # the stub gives gRPC's type


@pytest.mark.asyncio
async def test_caller_that_goes_away_ends_the_work(path: Path) -> None:
    """A cancelled call is cancelled in the servicer too, through all that lies between."""
    vms = Vms(asyncio.Event().wait)  # type: ignore[arg-type]  # what it returns never comes
    async with _server(vms, path), unix_channel(path, downstream="d") as channel:
        call = asyncio.ensure_future(vm_service_pb2_grpc.VmServiceStub(channel).GetVm(GET, timeout=_PATIENCE))
        async with asyncio.timeout(_PATIENCE):
            await vms.entered.wait()
            call.cancel()
            await vms.ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await call


@pytest.mark.asyncio
async def test_stream_nobody_reads_is_closed_where_it_ran(path: Path) -> None:
    """A servicer's generator is closed at once when its reader goes, not when the garbage collector comes."""
    vms = Vms()
    async with _server(vms, path), unix_channel(path, downstream="d") as channel:
        stream = vm_service_pb2_grpc.VmServiceStub(channel).WatchVms(vm_service_pb2.WatchVmsRequest())
        async for answer in stream:
            if answer.vm.revision == 100:
                break
        stream.cancel()
        async with asyncio.timeout(_PATIENCE):
            await vms.ended.wait()
    assert vms.ended_where_it_began


@pytest.mark.asyncio
@pytest.mark.parametrize("seconds", [None, 60.0], ids=["no deadline", "too long a deadline"])
@pytest.mark.parametrize("method", ["GetVm", "WatchVms"])
async def test_contracts_deadline_ends_what_the_callers_does_not(
    path: Path, method: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller without a deadline, or with one that is too long, gets its answer when the contract says."""

    def brief(name: str) -> MethodPolicy:
        return replace(policy_of(name), default_deadline=0.05, max_deadline=0.05)

    monkeypatch.setattr(interceptor, "policy_of", brief)
    vms = Vms(asyncio.Event().wait)  # type: ignore[arg-type]  # what it returns never comes
    async with _server(vms, path), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        stub = vm_service_pb2_grpc.VmServiceStub(channel)
        if method == "GetVm":
            answer = stub.GetVm(GET, timeout=seconds)
        else:
            answer = anext(aiter(stub.WatchVms(vm_service_pb2.WatchVmsRequest(), timeout=seconds)))
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await answer
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert status.from_rpc_error(late.value).reason == "DEADLINE_EXCEEDED"
    assert vms.ended.is_set()


@pytest.mark.asyncio
async def test_deadline_ends_a_stream(path: Path) -> None:
    """A stream ends with DEADLINE_EXCEEDED when its time is over, though it never fell silent."""
    async with _server(Vms(), path), unix_channel(path, downstream="d") as channel:
        stream = vm_service_pb2_grpc.VmServiceStub(channel).WatchVms(vm_service_pb2.WatchVmsRequest(), timeout=0.2)
        with pytest.raises(DeadlineExceeded):
            async for _ in stream:
                pass


@pytest.mark.asyncio
async def test_bytes_that_are_no_message_are_the_callers_fault(path: Path) -> None:
    """What cannot be decoded is INVALID_REQUEST, not a fault of the service."""
    async with _server(Vms(), path), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await channel.unary_unary("/cellmesh.api.hypervisor.v1.VmService/GetVm")(b"\xff\xff\xff")
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.asyncio
async def test_nobody_behind_the_socket(path: Path) -> None:
    """A downstream that is not there is UNAVAILABLE, with what to do."""
    async with unix_channel(path, downstream="d") as channel:
        with pytest.raises(DownstreamUnavailable, match="Try again"):
            await vm_service_pb2_grpc.VmServiceStub(channel).GetVm(GET, timeout=_PATIENCE)


def test_service_without_policy_does_not_start() -> None:
    """A server with an RPC no contract describes is refused before anybody can call."""

    def register(server: grpc.aio.Server) -> None:
        server.add_registered_method_handlers("planted.v1.Nobody", {"Knows": object()})  # type: ignore[attr-defined]

    with pytest.raises(PolicyMissing, match=r"planted\.v1\.Nobody/Knows"):
        MeshServer([register])


def test_service_without_policy_gets_no_further_socket(path: Path) -> None:
    """Nor is such a service served beside the others, and nothing is left of the try."""

    def register(server: grpc.aio.Server) -> None:
        server.add_registered_method_handlers("planted.v1.Nobody", {"Knows": object()})  # type: ignore[attr-defined]

    with pytest.raises(PolicyMissing, match=r"planted\.v1\.Nobody/Knows"):
        MeshServer([]).add_unix_socket(path, services=[register], caller=EDGE)
    assert not path.exists()


@pytest.mark.asyncio
async def test_what_ends_a_stream_while_it_writes_is_said_by_the_stream() -> None:
    """A limit within the answers that runs out while one of them is written is raised there, not at the writing."""

    class TooLongError(Exception):
        """What the limit means."""

    async def answers(_: object, __: object) -> AsyncIterator[int]:
        try:
            async with asyncio.timeout(0.01):
                yield 1
                await asyncio.Event().wait()
        except TimeoutError:
            raise TooLongError from None

    class SlowContext:
        """A call whose caller reads slowly."""

        async def send_initial_metadata(self, _: object) -> None:
            """Send nothing."""

        async def write(self, _: int) -> None:
            """Take an answer, and long for it."""
            await asyncio.sleep(60)

    handler: Any = grpc.unary_stream_rpc_method_handler(answers)
    with pytest.raises(TooLongError):
        await interceptor._drained(handler, []).unary_stream(None, SlowContext())
