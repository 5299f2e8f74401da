"""What the way from Envoy into a container costs: bridge and guest relay, beside an Envoy that is led to the app itself.

Without a VM the joints are measured alone: the real bridge and the agent's real relay, on sockets of this machine.
"""

from __future__ import annotations

import asyncio
import select
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.conftest import Record
from bench.ingress_app import MESSAGE
from bench.report import percentile
from cellmesh.api.common.v1 import container_pb2
from cellmesh.hypervisor.bridge.client import BridgeClient
from cellmesh.hypervisor.edge.endpoint import Endpoint
from cellmesh.hypervisor.vmm import bridges
from cellmesh.image import ContainerImage, GuestImage
from support.envoy import ALICE, BOB, READY_SECONDS, EdgeUnderTest, running_edge
from support.node import short_directory
from support.real_node import PATIENCE, real_node

_GUEST_PORT = 1 << 16
_MIB = 1 << 20
_CHUNK = 256 << 10
_ROUND_TRIPS = 1000
_TRANSFER = 1 << 30
_WEBSOCKETS = 200
_MESSAGES = 20
_ROUNDS = 5
_PATHS = ("/", "/dev/")
"""Two routes of one user: each may have 128 connections."""
_EMULATED_TRIPS = 50
_EMULATED_TRANSFER = 16 << 20
_SENT = bytes([0x82, 0x80 | MESSAGE, 0, 0, 0, 0])
_ECHOED = bytes([0x82, MESSAGE])

Timed = Callable[[str], float]
"""Does something as a user, whose routes lead one way or the other; seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingress:
    """An Envoy by which Alice reaches the app itself, and Bob the same or another through the joints."""

    edge: EdgeUnderTest
    runner: asyncio.Runner

    def by_turns(self, timed: Timed, *, rounds: int, warmup: int = 1) -> tuple[list[float], list[float]]:
        """Measure something through the joints by turns with the same without; seconds of each."""

        def measure() -> tuple[list[float], list[float]]:
            joined, direct = [], []
            for _ in range(rounds + warmup):
                direct.append(timed(ALICE))
                joined.append(timed(BOB))
            return joined[warmup:], direct[warmup:]

        # The authorizer is a task of this process, and has to run meanwhile.
        return self.runner.run(asyncio.to_thread(measure))

    @contextmanager
    def visitor(self, user: str) -> Iterator[Visitor]:
        """Connect as a user."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self.edge.socket))
            yield Visitor(connection=connection, user=user)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """One connection of HTTP/1.1; blocks."""

    connection: socket.socket
    user: str

    def ask(self, line: str, *fields: str) -> bytes:
        """Send the head of a request; return the head of its answer, or of its beginning."""
        self.say(line, *fields)
        return self.head()

    def say(self, line: str, *fields: str) -> None:
        """Send the head of a request."""
        lines = (f"{line} HTTP/1.1", "Host: cell.test", f"Authorization: Bearer {self.user}", *fields, "", "")
        self.connection.sendall("\r\n".join(lines).encode())

    def head(self) -> bytes:
        """Read the head of an answer and nothing more."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            part = self.connection.recv(_CHUNK, socket.MSG_PEEK)
            assert part, f"the connection ended after {head!r}"
            end = (head + part).find(b"\r\n\r\n")
            head += self.connection.recv(len(part) if end < 0 else end + 4 - len(head))
        assert head.split(b" ")[1] in (b"200", b"101"), head
        return head

    def trip(self, path: str = "/") -> float:
        """Ask for something small."""
        begun = time.perf_counter()
        self.skip(self.ask(f"GET {path}"))
        return time.perf_counter() - begun

    def skip(self, head: bytes) -> None:
        """Read the body that follows a head."""
        left = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
        buffer = memoryview(bytearray(_CHUNK))
        while left:
            count = self.connection.recv_into(buffer[: min(left, _CHUNK)])
            assert count, f"{left} bytes are missing"
            left -= count

    def download(self, size: int) -> float:
        """Read so many bytes."""
        begun = time.perf_counter()
        head = self.ask(f"GET /download?size={size}")
        assert f"content-length: {size}\r".encode() in head.lower()
        self.skip(head)
        return time.perf_counter() - begun

    def upload(self, size: int) -> float:
        """Send so many bytes."""
        begun = time.perf_counter()
        self.say("POST /upload", f"Content-Length: {size}")
        for _ in range(size // _CHUNK):
            self.connection.sendall(bytes(_CHUNK))
        self.skip(self.head())
        return time.perf_counter() - begun


class WebSockets:
    """Many WebSockets of one user, of which each has a message under way."""

    def __init__(self, ingress: Ingress, user: str, stack: ExitStack) -> None:
        self._open: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        stack.callback(self._poll.close)
        for number in range(_WEBSOCKETS):
            visitor = stack.enter_context(ingress.visitor(user))
            key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
            path = f"{_PATHS[number % len(_PATHS)]}ws"
            head = visitor.ask(
                f"GET {path}", "Upgrade: websocket", "Connection: Upgrade", key, "Sec-WebSocket-Version: 13"
            )
            assert head.startswith(b"HTTP/1.1 101")
            self._open[visitor.connection.fileno()] = visitor.connection
            self._poll.register(visitor.connection, select.EPOLLIN)
        self._sent = 0

    def echo(self) -> float:
        """Let each send its messages one after the other, and hold every answer to what was sent."""
        begun = time.perf_counter()
        left = dict.fromkeys(self._open, _MESSAGES)
        awaited = {descriptor: self._send(end) for descriptor, end in self._open.items()}
        got = dict.fromkeys(self._open, b"")
        while awaited:
            for descriptor, _ in self._poll.poll(PATIENCE):
                got[descriptor] += self._open[descriptor].recv(1 << 16)
                assert awaited[descriptor].startswith(got[descriptor]), "not what was sent last"
                if got[descriptor] != awaited[descriptor]:
                    continue
                got[descriptor] = b""
                left[descriptor] -= 1
                if left[descriptor]:
                    awaited[descriptor] = self._send(self._open[descriptor])
                else:
                    del awaited[descriptor]
        return time.perf_counter() - begun

    def _send(self, connection: socket.socket) -> bytes:
        self._sent += 1
        message = b"%0*d" % (MESSAGE, self._sent)
        connection.sendall(_SENT + message)
        return _ECHOED + message


async def lead(edge: EdgeUnderTest, user: str, path: Path) -> None:
    """Let both routes of a user lead to a socket."""
    endpoint = Endpoint(path=path, vm_id="vm", container="app", epoch=1, generation=1)
    for slot in ("live", "dev"):
        cluster = f"{user}/{slot}"
        await edge.discovery.served(cluster, edge.discovery.put({cluster: endpoint}), timeout=READY_SECONDS)


@asynccontextmanager
async def bridged(directory: Path) -> AsyncIterator[tuple[Path, Path]]:
    """Run the app, the guest's relay and the bridge; yield the app's own socket and the one before the joints."""
    app, vsock = directory / "app.sock", directory / "vsock.sock"
    (directory / "in").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    here = Path(__file__).parent
    servers = [
        subprocess.Popen([sys.executable, here / "ingress_app.py", app, str(port)]),
        subprocess.Popen([sys.executable, here / "ingress_guest.py", vsock, str(_GUEST_PORT), str(port)]),
    ]
    try:
        pid, ticks = await bridges.start(directory, uid=directory.stat().st_uid)
        try:
            await BridgeClient(directory=directory).add("app", _GUEST_PORT)
            async with asyncio.timeout(READY_SECONDS):
                while not (app.exists() and vsock.exists()):
                    await asyncio.sleep(0.02)
            yield app, directory / "in" / "app"
        finally:
            await bridges.end(pid, ticks, directory=directory)
    finally:
        for server in servers:
            server.kill()
            server.wait()


@asynccontextmanager
async def joints_alone(runner: asyncio.Runner) -> AsyncIterator[Ingress]:
    """Give both ways without a VM."""
    with short_directory() as directory:
        async with bridged(directory) as (app, joined), running_edge() as edge:
            await lead(edge, ALICE, app)
            await lead(edge, BOB, joined)
            yield Ingress(edge=edge, runner=runner)


@asynccontextmanager
async def through_a_guest(runner: asyncio.Runner, guest: GuestImage, example: ContainerImage) -> AsyncIterator[Ingress]:
    """Give the way into a container of a VM, and beside it the way to an app of this machine."""
    with short_directory() as directory:
        async with (
            bridged(directory) as (app, _),
            real_node(guest, [example]) as it,
            running_edge() as edge,
        ):
            vm = await it.running()
            probe = container_pb2.HealthProbe(http=container_pb2.HttpProbe(port=8080, path="/healthz"))
            await it.start_container(vm.vm_id, example.digest, "app", probe=probe)
            container = await it.until_container(vm.vm_id, "app", container_pb2.CONTAINER_STATE_RUNNING)
            name = f"app.{container.epoch}.{container.generation}"
            await lead(edge, ALICE, app)
            await lead(edge, BOB, it.run_dir / "in" / vm.vm_id.replace("-", "")[:12] / name)
            yield Ingress(edge=edge, runner=runner)


@pytest.fixture(scope="module")
def joints(runner: asyncio.Runner) -> Iterator[Ingress]:
    """Give the ways that have no VM."""
    stack = AsyncExitStack()
    try:
        yield runner.run(stack.enter_async_context(joints_alone(runner)))
    finally:
        runner.run(stack.aclose())


@pytest.fixture(scope="module")
def vm(runner: asyncio.Runner, guest_image: GuestImage, example_images: dict[str, ContainerImage]) -> Iterator[Ingress]:
    """Give the ways of which one leads into a VM."""
    stack = AsyncExitStack()
    try:
        yield runner.run(stack.enter_async_context(through_a_guest(runner, guest_image, example_images["live"])))
    finally:
        runner.run(stack.aclose())


def record_trips(ingress: Ingress, record: Record, name: str, *, trips: int, emulated: bool, way: str) -> None:
    """Measure small requests on connections that are kept."""
    with ingress.visitor(ALICE) as alice, ingress.visitor(BOB) as bob:
        visitors = {ALICE: alice, BOB: bob}
        joined, direct = ingress.by_turns(lambda user: visitors[user].trip(), rounds=trips, warmup=20)
    joined, direct = ([1000 * each for each in samples] for samples in (joined, direct))
    added = [percentile(joined, percent) - percentile(direct, percent) for percent in (50, 99)]
    note = (
        f"a small request through Envoy, authorizer and {way}: adds {added[0]:.3f} ms at p50, {added[1]:.3f} at p99 "
        f"({percentile(direct, 99):.3f} to {percentile(joined, 99):.3f}); floor: Envoy led to the app's unix socket"
    )
    record(name, joined, floors=direct, unit="ms", emulated=emulated, note=note)


def record_transfer(ingress: Ingress, record: Record, name: str, *, size: int, emulated: bool, way: str) -> None:
    """Measure a large transfer."""

    def timed(user: str) -> float:
        with ingress.visitor(user) as visitor:
            return visitor.download(size) if name.endswith("down") else visitor.upload(size)

    joined, direct = ingress.by_turns(timed, rounds=3)
    speeds = [size / percentile(samples, 50) / 1e9 for samples in (joined, direct)]
    note = f"{size // _MIB} MiB through Envoy and {way}: {speeds[0]:.2f} GB/s, floor: {speeds[1]:.2f} GB/s without"
    per_mib = [[1000 * each / (size / _MIB) for each in samples] for samples in (joined, direct)]
    record(name, per_mib[0], floors=per_mib[1], unit="ms/MiB", emulated=emulated, note=note)


def test_ingress_added(joints: Ingress, record: Record) -> None:
    """Measure what bridge and relay add to a request."""
    record_trips(joints, record, "ingress_added", trips=_ROUND_TRIPS, emulated=False, way="both joints, without a VM")


@pytest.mark.parametrize("way", ["down", "up"])
def test_ingress_throughput(joints: Ingress, record: Record, way: str) -> None:
    """Measure how fast 1 GiB passes both joints."""
    name = f"ingress_throughput_{way}"
    record_transfer(joints, record, name, size=_TRANSFER, emulated=False, way="both joints, without a VM")


def test_websocket_echo(joints: Ingress, record: Record) -> None:
    """Prove that of 200 WebSockets that speak at once every message is echoed, and measure how fast."""
    with ExitStack() as stack:
        opened = joints.runner.run(
            asyncio.to_thread(lambda: {user: WebSockets(joints, user, stack) for user in (ALICE, BOB)})
        )
        joined, direct = joints.by_turns(lambda user: opened[user].echo(), rounds=_ROUNDS)
    messages = _WEBSOCKETS * _MESSAGES
    speeds = [messages / percentile(samples, 50) for samples in (joined, direct)]
    note = f"{_WEBSOCKETS} WebSockets, {MESSAGE} bytes: {speeds[0]:.0f} messages/s, none lost; {speeds[1]:.0f} without the joints"
    per_message = [[1e6 * each / messages for each in samples] for samples in (joined, direct)]
    record("websocket_echo", per_message[0], floors=per_message[1], unit="us", emulated=False, note=note)


@pytest.mark.guest
@pytest.mark.timeout(600)
def test_ingress_added_in_a_vm(vm: Ingress, record: Record, *, emulated: bool) -> None:
    """Measure a request to a container of a VM."""
    way = "the joints of a VM; the app is a slower one"
    record_trips(vm, record, "ingress_added_vm", trips=_EMULATED_TRIPS, emulated=emulated, way=way)


@pytest.mark.guest
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["down", "up"])
def test_ingress_throughput_of_a_vm(vm: Ingress, record: Record, way: str, *, emulated: bool) -> None:
    """Measure how fast bytes pass from and to a container of a VM."""
    name = f"ingress_throughput_vm_{way}"
    record_transfer(vm, record, name, size=_EMULATED_TRANSFER, emulated=emulated, way="a VM; the app is a slower one")
