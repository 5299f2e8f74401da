"""A channel keeps a sick or hostile downstream from doing harm."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from cellmesh.api.guest.v1 import (
    container_service_pb2,
    container_service_pb2_grpc,
    guest_service_pb2,
    guest_service_pb2_grpc,
)
from cellmesh.api.hypervisor.v1 import vm_service_pb2, vm_service_pb2_grpc
from cellmesh.mesh.breaker import Breaker
from cellmesh.mesh.channel import MeshChannel, guest_channel, unix_channel
from cellmesh.mesh.errors import Code, DownstreamUnavailable, InvalidAnswer, MeshError, RemoteError
from support.vm_service import GET, Vms

INFO = guest_service_pb2.GetInfoRequest()
# Seconds, cut to the longest the contract allows: where it is not the deadline that a test is about.
_PATIENCE = 30.0


class Guest(guest_service_pb2_grpc.GuestServiceServicer):
    """An agent that answers what a test wants."""

    def __init__(
        self, answer: Callable[[grpc.aio.ServicerContext], Awaitable[guest_service_pb2.GetInfoResponse]]
    ) -> None:
        self._answer = answer

    async def GetInfo(
        self, request: guest_service_pb2.GetInfoRequest, context: grpc.aio.ServicerContext
    ) -> guest_service_pb2.GetInfoResponse:
        """Answer."""
        return await self._answer(context)


@asynccontextmanager
async def _plain(path: Path, add: Callable[[grpc.aio.Server], None]) -> AsyncIterator[None]:
    """Serve without any policy, as a stranger would."""
    server = grpc.aio.server()
    add(server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


async def _ask(path: Path, guest: Guest) -> guest_service_pb2.GetInfoResponse:
    add = functools.partial(guest_service_pb2_grpc.add_GuestServiceServicer_to_server, guest)
    async with _plain(path, add), guest_channel(path, vm_id="vm-1") as channel:
        return await guest_service_pb2_grpc.GuestServiceStub(channel).GetInfo(INFO, timeout=_PATIENCE)


@pytest.mark.asyncio
async def test_guests_answer_is_checked(tmp_path: Path) -> None:
    """An answer that breaks a rule of the contract is an error of the guest's, whatever it says."""

    async def lie(_: grpc.aio.ServicerContext) -> guest_service_pb2.GetInfoResponse:
        return guest_service_pb2.GetInfoResponse(boot_id="../../etc/passwd")

    with pytest.raises(InvalidAnswer, match=r"guest vm-1 broke the contract: GetInfoResponse\.boot_id"):
        await _ask(tmp_path / "s", Guest(lie))


@pytest.mark.asyncio
async def test_guests_answer_is_small(tmp_path: Path) -> None:
    """An answer above 256 KiB is not taken in."""

    async def flood(_: grpc.aio.ServicerContext) -> guest_service_pb2.GetInfoResponse:
        return guest_service_pb2.GetInfoResponse(agent_version="x" * 300_000)

    with pytest.raises(RemoteError) as refusal:
        await _ask(tmp_path / "s", Guest(flood))
    assert refusal.value.code.name == "RESOURCE_EXHAUSTED"


@pytest.mark.asyncio
async def test_guests_error_is_escaped(tmp_path: Path) -> None:
    """A guest cannot write to a terminal or forge a log line through its error."""

    async def shout(context: grpc.aio.ServicerContext) -> guest_service_pb2.GetInfoResponse:
        await context.abort(grpc.StatusCode.NOT_FOUND, "\x1b[2J\nroot: ok \u202e" + "x" * 3000)

    with pytest.raises(RemoteError) as refusal:
        await _ask(tmp_path / "s", Guest(shout))
    assert refusal.value.message.isprintable()
    assert len(refusal.value.message) <= 1024


@pytest.mark.asyncio
async def test_guests_bytes_that_are_no_message(tmp_path: Path) -> None:
    """What cannot be decoded is an error, not None."""

    async def garbage(_: bytes, __: grpc.aio.ServicerContext) -> bytes:
        return b"\xff\xff\xff"

    def add(server: grpc.aio.Server) -> None:
        handlers = {"GetInfo": grpc.unary_unary_rpc_method_handler(garbage)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("cellmesh.api.guest.v1.GuestService", handlers),)
        )

    async with _plain(tmp_path / "s", add), guest_channel(tmp_path / "s", vm_id="vm-1") as channel:
        with pytest.raises(InvalidAnswer):
            await guest_service_pb2_grpc.GuestServiceStub(channel).GetInfo(INFO, timeout=_PATIENCE)


@pytest.mark.asyncio
async def test_stream_is_tried_again_only_before_its_first_answer(tmp_path: Path) -> None:
    """A watch that cannot start is tried again; one that broke after an answer is the caller's to resume."""

    class Flaky(Vms):
        async def WatchVms(self, request, context):  # type: ignore[no-untyped-def]
            """Fail before the first answer twice, then after it."""
            self.asked += 1
            if self.asked >= 3:
                yield vm_service_pb2.WatchVmsResponse(bookmark={})
            await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    vms = Flaky()
    async with _plain(tmp_path / "s", vms.register), unix_channel(tmp_path / "s", downstream="d") as channel:
        told = aiter(vm_service_pb2_grpc.VmServiceStub(channel).WatchVms(vm_service_pb2.WatchVmsRequest()))
        assert (await anext(told)).HasField("bookmark")
        with pytest.raises(DownstreamUnavailable):
            await anext(told)
    assert vms.asked == 3


@pytest.mark.asyncio
async def test_cancelled_callers_do_not_open_the_breaker(tmp_path: Path) -> None:
    """Users who close their tabs take nobody else down."""
    vms = Vms(asyncio.Event().wait)  # type: ignore[arg-type]  # what it returns never comes
    breaker = Breaker("d", fail_max=2)
    async with (
        _plain(tmp_path / "s", vms.register),
        unix_channel(tmp_path / "s", downstream="d", breaker=breaker) as channel,
    ):
        stub = vm_service_pb2_grpc.VmServiceStub(channel)
        for _ in range(5):
            vms.entered.clear()
            call = asyncio.ensure_future(stub.GetVm(GET, timeout=_PATIENCE))
            await vms.entered.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
    assert breaker.state == "closed"


@pytest.mark.asyncio
async def test_outage_is_not_amplified(tmp_path: Path) -> None:
    """A hundred calls to a downstream that refuses them make at most 1.2 times as many, and a burst of three."""

    class Refusing(Vms):
        async def GetVm(self, request, context):  # type: ignore[no-untyped-def]
            """Refuse."""
            self.asked += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no")

    vms = Refusing()
    breaker = Breaker("d", fail_max=10_000)
    async with (
        _plain(tmp_path / "s", vms.register),
        unix_channel(tmp_path / "s", downstream="d", breaker=breaker) as channel,
    ):
        stub = vm_service_pb2_grpc.VmServiceStub(channel)
        results = await asyncio.gather(
            *(stub.GetVm(GET, timeout=_PATIENCE) for _ in range(100)), return_exceptions=True
        )
    assert all(isinstance(result, DownstreamUnavailable) for result in results)
    assert 100 < vms.asked <= 123


class Refusing(container_service_pb2_grpc.GuestContainerServiceServicer):
    """An agent that refuses every command."""

    async def Exec(
        self, request_iterator: AsyncIterator[container_service_pb2.ExecRequest], context: grpc.aio.ServicerContext
    ) -> None:
        """Refuse, and read nothing."""
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such container")


@pytest.mark.asyncio
async def test_stream_refused_while_it_is_written_to_is_no_fault_of_ours(tmp_path: Path) -> None:
    """GRPC may forget why the other side ended a stream; what it says then never passes for INTERNAL."""

    async def frames() -> AsyncIterator[container_service_pb2.ExecRequest]:
        for _ in range(3):
            yield container_service_pb2.ExecRequest()

    add = functools.partial(container_service_pb2_grpc.add_GuestContainerServiceServicer_to_server, Refusing())
    async with _plain(tmp_path / "s", add), guest_channel(tmp_path / "s", vm_id="vm-1") as channel:
        exec_ = container_service_pb2_grpc.GuestContainerServiceStub(channel).Exec
        for _ in range(100):
            with pytest.raises(MeshError) as refused:
                await anext(aiter(exec_(frames())))
            assert refused.value.code in {Code.NOT_FOUND, Code.UNAVAILABLE}


async def _asked_until(ends: Callable[[MeshChannel, asyncio.Task[object]], Awaitable[object]], path: Path) -> object:
    """Return what a call ends with whose answer does not come, once it was asked and `ends` has ended it."""
    asked = asyncio.Event()

    async def answer(_: grpc.aio.ServicerContext) -> guest_service_pb2.GetInfoResponse:
        asked.set()
        return await asyncio.get_running_loop().create_future()

    add = functools.partial(guest_service_pb2_grpc.add_GuestServiceServicer_to_server, Guest(answer))
    async with _plain(path, add), guest_channel(path, vm_id="vm-1") as channel:
        asking = asyncio.ensure_future(guest_service_pb2_grpc.GuestServiceStub(channel).GetInfo(INFO))
        await asked.wait()
        await ends(channel, asking)
        (ended,) = await asyncio.gather(asking, return_exceptions=True)
        return ended


@pytest.mark.asyncio
async def test_who_asks_on_a_channel_that_is_closed_is_told_so(tmp_path: Path) -> None:
    """Nobody has cancelled who asks: that a connection was hung up is an error of the call, once."""

    async def hang_up(channel: MeshChannel, _: asyncio.Task[object]) -> None:
        await channel.close()

    assert isinstance(await _asked_until(hang_up, tmp_path / "s"), DownstreamUnavailable)


@pytest.mark.asyncio
async def test_who_is_cancelled_while_asking_is_cancelled(tmp_path: Path) -> None:
    """A cancellation from outside travels, whatever gRPC says of the call."""

    async def cancel(_: MeshChannel, asking: asyncio.Task[object]) -> None:
        asking.cancel()

    assert isinstance(await _asked_until(cancel, tmp_path / "s"), asyncio.CancelledError)


@pytest.mark.asyncio
async def test_a_cancellation_is_never_lost(tmp_path: Path) -> None:
    """Whenever it comes, who is cancelled asks no more: gRPC swallows it where a stream begins or ends."""

    async def frames() -> AsyncIterator[container_service_pb2.ExecRequest]:
        yield container_service_pb2.ExecRequest()
        await asyncio.get_running_loop().create_future()

    breaker = Breaker("d", fail_max=1_000_000)
    asked = 0
    async with unix_channel(tmp_path / "nobody", downstream="d", breaker=breaker) as channel:
        exec_ = container_service_pb2_grpc.GuestContainerServiceStub(channel).Exec

        async def ask() -> None:
            nonlocal asked
            while True:
                asked += 1
                with contextlib.suppress(MeshError):
                    await anext(exec_(frames()))
                await asyncio.sleep(0)

        for turns in range(1, 200):
            asking = asyncio.create_task(ask())
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.sleep(turns % 7 * 1e-4)  # gRPC's own thread gets further, too
            before = asked
            asking.cancel()
            await asyncio.wait({asking}, timeout=_PATIENCE)
            assert asking.cancelled(), f"cancelled after {turns} turns, it goes on"
            assert asked == before


class Mute(container_service_pb2_grpc.GuestContainerServiceServicer):
    """An agent whose container says nothing."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def StreamLogs(
        self, request: container_service_pb2.StreamLogsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[container_service_pb2.StreamLogsResponse]:
        """Never answer."""
        self.asked.set()
        await asyncio.get_running_loop().create_future()
        yield container_service_pb2.StreamLogsResponse()


@pytest.mark.asyncio
async def test_who_follows_a_stream_on_a_channel_that_is_closed_is_told_so(tmp_path: Path) -> None:
    """A stream that was hung up ends with an error; one its reader has cancelled, with that."""
    mute = Mute()
    add = functools.partial(container_service_pb2_grpc.add_GuestContainerServiceServicer_to_server, mute)
    for ending, expected in (("hang up", DownstreamUnavailable), ("cancel", asyncio.CancelledError)):
        mute.asked.clear()
        path = tmp_path / ending
        async with _plain(path, add), guest_channel(path, vm_id="vm-1") as channel:
            stub = container_service_pb2_grpc.GuestContainerServiceStub(channel)
            answers = stub.StreamLogs(container_service_pb2.StreamLogsRequest())
            reading = asyncio.ensure_future(anext(answers))
            await mute.asked.wait()
            if ending == "hang up":
                await channel.close()
            else:
                answers.cancel()
            (ended,) = await asyncio.gather(reading, return_exceptions=True)
        assert isinstance(ended, expected)
