"""The door before a gRPC server: few connections, of clients only, none silent or slow, and bounded work and memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from cellmesh.api.hypervisor.v1 import vm_service_pb2, vm_service_pb2_grpc
from cellmesh.mesh.acceptor import Acceptor, Bounds
from cellmesh.mesh.frames import PREFACE
from cellmesh.mesh.unix_socket import SocketUnavailable
from support.http2 import DATA, END_HEADERS, HEADERS, PING, SETTINGS, frame
from support.vm_service import GET, Vms
from unit.mesh.test_frames import BAD

SECONDS = 30.0
FOR_EVER = 1e6
BEGIN = PREFACE + frame(SETTINGS)
CALL = BEGIN + frame(HEADERS, b"h", stream=1, flags=END_HEADERS)
ECHO = frame(PING, b"p" * 8)
PATIENT = Bounds(handshake=FOR_EVER, silence=FOR_EVER)

pytestmark = pytest.mark.asyncio


@dataclass
class Scene:
    """An acceptor before a server that keeps what it gets, and sends `flood` first."""

    path: Path
    acceptor: Acceptor
    notes: list[str] = field(default_factory=list)
    got: list[bytearray] = field(default_factory=list)
    reads: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.asynccontextmanager
    async def stranger(self, data: bytes = b"") -> AsyncIterator[socket.socket]:
        """Connect and send some bytes."""
        with socket.socket(socket.AF_UNIX) as made:
            made.setblocking(False)
            await asyncio.get_running_loop().sock_connect(made, str(self.path))
            await send(made, data)
            yield made

    async def until_got(self, number: int, data: bytes) -> None:
        """Wait until the server has got exactly these bytes by its connection of this number."""
        async with asyncio.timeout(SECONDS):
            while len(self.got) <= number or self.got[number] != data:  # noqa: ASYNC110  # the acceptor tells nobody
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def scene(directory: Path, bounds: Bounds, *, flood: bytes = b"", reads: bool = True) -> AsyncIterator[Scene]:
    """Run an acceptor and the server behind it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = bytearray()
        it.got.append(got)
        writer.write(flood)
        await it.reads.wait()
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while data := await reader.read(65536):
                got += data

    notes: list[str] = []
    path, inner = directory / "door.sock", directory / "inner.sock"
    acceptor = Acceptor(path, inner=inner, bounds=bounds, note=notes.append)
    it = Scene(path=path, acceptor=acceptor, notes=notes)
    if reads:
        it.reads.set()
    async with await asyncio.start_unix_server(serve, inner):
        acceptor.start()
        yield it
        it.reads.set()
        acceptor.stop()


async def send(made: socket.socket, data: bytes) -> None:
    """Send some bytes; an end that is closed already may take none."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        await asyncio.get_running_loop().sock_sendall(made, data)


async def ended(made: socket.socket) -> None:
    """Wait until the other end closes."""
    async with asyncio.timeout(SECONDS):
        with contextlib.suppress(ConnectionResetError):
            while await asyncio.get_running_loop().sock_recv(made, 65536):
                pass


def is_open(made: socket.socket) -> bool:
    """Tell whether nothing ended this connection yet."""
    try:
        return made.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


async def taken(made: socket.socket, data: bytes) -> int:
    """Send bytes again and again until none are taken for half a second; return how many were."""
    total = 0
    while True:
        try:
            total += made.send(data)
        except BlockingIOError:
            await asyncio.sleep(0.5)
            with contextlib.suppress(BlockingIOError):
                total += made.send(data)
                continue
            return total


async def test_bytes_pass_both_ways_unchanged(tmp_path: Path) -> None:
    """A megabyte there and a megabyte back, in pieces."""
    there = CALL + frame(DATA, os.urandom(16384), stream=1) * 64
    back = os.urandom(1 << 20)
    async with scene(tmp_path, PATIENT, flood=back) as it, it.stranger(there) as one:
        received = bytearray()
        async with asyncio.timeout(SECONDS):
            while len(received) < len(back):
                received += await asyncio.get_running_loop().sock_recv(one, 65536)
        assert received == back
        await it.until_got(0, there)
    assert it.notes == []


@pytest.mark.parametrize("name", BAD)
async def test_what_no_client_sends_is_not_passed_on(tmp_path: Path, name: str) -> None:
    """The connection ends, it is noted why, and the server has got none of the piece with the bad frame."""
    async with scene(tmp_path, PATIENT) as it, it.stranger(CALL) as good, it.stranger(BAD[name]) as bad:
        await ended(bad)
        await it.until_got(0, CALL)
        assert len(it.notes) == 1
        assert len(it.got) == 1
        assert is_open(good)


async def test_a_connection_too_many_is_closed(tmp_path: Path) -> None:
    """Four are admitted and the fifth is not; after one has ended there is room for another."""
    async with scene(tmp_path, PATIENT) as it, contextlib.AsyncExitStack() as held:
        ones = [await held.enter_async_context(it.stranger(CALL)) for _ in range(4)]
        async with it.stranger(CALL) as fifth:
            await ended(fifth)
        assert it.notes == ["more connections than it may have"]
        assert all(is_open(one) for one in ones)
        ones[0].close()
        async with asyncio.timeout(SECONDS):
            while len(it.got) < 5:
                # Until the acceptor has seen that one ended, another is one too many.
                async with it.stranger(CALL) as another:
                    await asyncio.sleep(0.05)
                    assert is_open(another) == (len(it.got) == 5)


SLOW = {
    "nothing": b"",
    "half a preface": PREFACE[:9],
    "a preface": PREFACE,
    "half of SETTINGS": BEGIN[:-1],
    "no call": BEGIN,
}


@pytest.mark.parametrize("name", SLOW)
async def test_a_connection_without_a_call_ends(tmp_path: Path, name: str) -> None:
    """Who does not begin a call in time is sent away, though it goes on sending single bytes of a frame."""
    async with scene(tmp_path, Bounds(handshake=0.3, silence=FOR_EVER)) as it, it.stranger(SLOW[name]) as one:
        rest = (BEGIN + frame(DATA, b"d" * 16384, stream=1))[len(SLOW[name]) :]
        if name != "nothing":
            for at in range(len(rest)):
                if not is_open(one):
                    break
                await send(one, rest[at : at + 1])
                await asyncio.sleep(0.01)
        await ended(one)
    assert it.notes == ["it was silent for too long, or slow"]


async def test_a_connection_that_goes_silent_ends(tmp_path: Path) -> None:
    """Bytes of one frame are no sign of life, complete frames are."""
    async with (
        scene(tmp_path, Bounds(handshake=FOR_EVER, silence=3.0)) as it,
        it.stranger(CALL) as lively,
        it.stranger(CALL) as silent,
        it.stranger(CALL + frame(DATA, b"d" * 16384, stream=1)[:9]) as slow,
    ):
        while is_open(silent) or is_open(slow):
            await send(lively, ECHO)
            await send(slow, b"d")
            await asyncio.sleep(0.05)
        assert is_open(lively)
    assert it.notes == ["it was silent for too long, or slow"] * 2


async def test_who_does_not_read_is_sent_away(tmp_path: Path) -> None:
    """What waits for a stranger that reads nothing ends with its connection, though it goes on sending."""
    bounds = Bounds(handshake=FOR_EVER, silence=0.5)
    async with scene(tmp_path, bounds, flood=b"x" * (8 << 20)) as it, it.stranger(CALL) as one:
        async with asyncio.timeout(SECONDS):
            while not it.notes:
                await send(one, ECHO)
                await asyncio.sleep(0.02)
    assert it.notes == ["it was silent for too long, or slow"]


async def test_a_server_that_does_not_read_holds_the_stranger(tmp_path: Path) -> None:
    """What the acceptor takes beyond the buffers of both sockets is one piece."""
    plenty = Bounds(handshake=FOR_EVER, silence=FOR_EVER, work=1e9)
    data = frame(DATA, b"d" * 16384, stream=1)
    with socket.socket(socket.AF_UNIX) as probe:
        buffer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    async with scene(tmp_path, plenty, reads=False) as it, it.stranger(CALL) as one:
        # The server's own reader takes up to 128 KiB before it is asked to.
        assert await taken(one, data) <= 2 * buffer + 3 * len(data) + (128 << 10)
        assert is_open(one)


async def test_work_is_bounded_for_all_connections_together(tmp_path: Path) -> None:
    """Frames beyond what a stranger may have at once are not read, and neither is its next connection."""
    bounds = Bounds(handshake=FOR_EVER, silence=FOR_EVER, work=200, work_per_second=1e-6)
    async with scene(tmp_path, bounds) as it, it.stranger(CALL) as one:
        await taken(one, ECHO * 1000)
        # One piece may go beyond.
        assert len(it.got[0]) // len(ECHO) <= 200 + (16 << 10) // len(ECHO)
        async with it.stranger(CALL) as other:
            await asyncio.sleep(0.2)
            assert is_open(other)
        assert len(it.got) == 1


async def test_work_is_earned_again(tmp_path: Path) -> None:
    """A stranger that sends too fast gets all of it through, later."""
    bounds = Bounds(handshake=FOR_EVER, silence=FOR_EVER, work=100, work_per_second=2000)
    async with scene(tmp_path, bounds) as it, it.stranger(CALL + ECHO * 3000) as _:
        await it.until_got(0, CALL + ECHO * 3000)
    assert it.notes == []


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let this process open nothing more inside."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as last:  # noqa: PTH123  # the lowest number that is free
        lowest = last.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_process_without_descriptors_waits(tmp_path: Path) -> None:
    """A connection that cannot be taken is noted, not tried without a pause, and taken later."""
    async with scene(tmp_path, PATIENT) as it:
        with socket.socket(socket.AF_UNIX) as made:
            made.setblocking(False)
            with no_descriptor_left():
                made.connect(str(it.path))
                for _ in range(100):
                    await asyncio.sleep(0)
            assert it.notes == ["no connection could be taken: EMFILE"]
            await send(made, CALL)
            await it.until_got(0, CALL)


async def test_stopped_it_leaves_nothing(tmp_path: Path) -> None:
    """Connections end, the path is free for the next one, and a live one is not taken."""
    async with scene(tmp_path, PATIENT) as it, it.stranger(CALL) as one:
        assert stat.S_ISSOCK(it.path.stat().st_mode)
        with pytest.raises(SocketUnavailable):
            Acceptor(it.path, inner=tmp_path / "x", bounds=PATIENT, note=it.notes.append)
        it.acceptor.stop()
        await ended(one)
        assert not it.path.exists()
        Acceptor(it.path, inner=tmp_path / "x", bounds=PATIENT, note=it.notes.append).stop()


async def test_a_stop_minds_nothing_in_the_strangers_directory(tmp_path: Path) -> None:
    """Whatever has the socket's name by then, the stop goes on."""
    async with scene(tmp_path, PATIENT) as it:
        it.path.unlink()
        it.path.mkdir()
        it.acceptor.stop()
        assert it.path.is_dir()


async def test_calls_of_grpc_pass(tmp_path: Path) -> None:
    """Long messages, a hundred calls at once, and cancelled calls, by a real client and server."""
    vms, notes = Vms(), list[str]()
    server = grpc.aio.server(options=[("grpc.http2.bdp_probe", 0)])
    vms.register(server)
    server.add_insecure_port(f"unix:{tmp_path}/inner.sock")
    acceptor = Acceptor(tmp_path / "s.sock", inner=tmp_path / "inner.sock", bounds=Bounds(), note=notes.append)
    await server.start()
    acceptor.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s.sock") as channel:
        stub = vm_service_pb2_grpc.VmServiceStub(channel)
        await stub.GetVm(vm_service_pb2.GetVmRequest(user_id="u" * (1 << 20)), timeout=SECONDS)
        cancelled = [stub.GetVm(GET, timeout=SECONDS) for _ in range(50)]
        for each in cancelled[::2]:
            each.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
        await asyncio.gather(*(stub.GetVm(GET, timeout=SECONDS) for _ in range(100)))
    acceptor.stop()
    await server.stop(None)
    assert vms.asked > 100
    assert notes == []
