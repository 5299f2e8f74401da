"""What the way from Envoy into a container costs: bridge and guest relay, beside an Envoy led to the app itself.

Without a VM the joints are measured alone: the real bridge and the agent's real relay, on sockets of this machine.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.conftest import Record
from bench.ingress_app import MESSAGE
from bench.ingress_visitors import MESSAGES, WEBSOCKETS, Ingress, WebSockets
from bench.report import percentile
from cellmesh.api.common.v1 import container_pb2, health_pb2
from cellmesh.api.hypervisor.v1 import container_pb2 as hypervisor_container_pb2
from cellmesh.hypervisor.bridge.client import BridgeClient
from cellmesh.hypervisor.edge.endpoint import Endpoint
from cellmesh.hypervisor.vmm import bridges
from cellmesh.image import ContainerImage, GuestImage
from support.commands import Box
from support.envoy import ALICE, BOB, READY_SECONDS, EdgeUnderTest, running_edge
from support.node import Node, short_directory
from support.real_node import PATIENCE, real_node

_GUEST_PORT = 1 << 16
_MIB = 1 << 20
_ROUND_TRIPS = 1000
_TRANSFER = 1 << 30
_ROUNDS = 5
_TRIPS_OF_A_VM = 100
_TRANSFER_OF_A_VM = 16 << 20
_INSIDE = """
import socket, sys
method, path, times, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
chunk = bytearray(1 << 18)
with socket.create_connection(("127.0.0.1", 8080)) as connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(times):
        connection.sendall(f"{method} {path} HTTP/1.1\\r\\nHost: cell\\r\\nContent-Length: {size}\\r\\n\\r\\n".encode())
        for _ in range(size // len(chunk)):
            connection.sendall(chunk)
        head, end, body = b"", b"", b""
        while not end:
            head += connection.recv(1 << 16)
            _, end, body = head.partition(b"\\r\\n\\r\\n")
        left = int(head.lower().partition(b"content-length: ")[2].split()[0]) - len(body)
        while left:
            left -= connection.recv_into(chunk, min(left, len(chunk)))
"""
"""Asks the app from inside its container, a number of times on one connection."""


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
    servers = [
        _python("ingress_app.py", app, port),
        _python("ingress_guest.py", vsock, _GUEST_PORT, port),
    ]
    try:
        pid, ticks = await bridges.start(directory, uid=directory.stat().st_uid)
        try:
            await BridgeClient(directory=directory).add("app", _GUEST_PORT)
            async with asyncio.timeout(READY_SECONDS):
                while not (app.exists() and vsock.exists()):  # noqa: ASYNC110 - other processes make them
                    await asyncio.sleep(0.02)
            yield app, directory / "in" / "app"
        finally:
            await bridges.end(pid, ticks, directory=directory)
    finally:
        for server in servers:
            server.kill()
            server.wait()


def _python(name: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, Path(__file__).with_name(name), *map(str, arguments)])


@asynccontextmanager
async def joints_alone(runner: asyncio.Runner) -> AsyncIterator[Ingress]:
    """Give both ways without a VM."""
    with short_directory() as directory:
        async with bridged(directory) as (app, joined), running_edge() as edge:
            await lead(edge, ALICE, app)
            await lead(edge, BOB, joined)
            yield Ingress(edge=edge, runner=runner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A VM into whose container Bob is led."""

    ingress: Ingress
    box: Box

    def inside(self, method: str, path: str, *, times: int = 1, size: int = 0) -> float:
        """Ask the app from inside its container; the host's seconds for each time, without the command's own."""

        async def took(times: int) -> float:
            begun = time.perf_counter()
            ended = await self.box.run("python3", "-c", _INSIDE, method, path, str(times), str(size))
            assert ended.exit_code == 0, ended
            return time.perf_counter() - begun

        async def difference() -> float:
            return (await took(times) - await took(0)) / times

        return asyncio.run_coroutine_threadsafe(difference(), self.ingress.runner.get_loop()).result()


async def serving(it: Node, vm_id: str) -> hypervisor_container_pb2.Container:
    """Wait until the app answers its probe, and return its container."""
    async with asyncio.timeout(PATIENCE):
        while True:
            container = await it.container(vm_id)
            if container.status.health == health_pb2.HEALTH_STATUS_SERVING:
                return container
            await asyncio.sleep(0.1)


@asynccontextmanager
async def through_a_guest(runner: asyncio.Runner, guest: GuestImage, example: ContainerImage) -> AsyncIterator[Guest]:
    """Give the way into a container of a VM."""
    async with real_node(guest, [example]) as it, running_edge() as edge:
        vm = await it.running()
        probe = container_pb2.HealthProbe(http=container_pb2.HttpProbe(port=8080, path="/healthz"))
        await it.start_container(vm.vm_id, example.digest, probe=probe)
        container = await serving(it, vm.vm_id)
        name = f"app.{container.epoch}.{container.generation}"
        await lead(edge, BOB, it.run_dir / "in" / vm.vm_id.replace("-", "")[:12] / name)
        yield Guest(ingress=Ingress(edge=edge, runner=runner), box=Box(node=it, vm_id=vm.vm_id, name="app"))


@pytest.fixture(scope="module")
def joints(runner: asyncio.Runner) -> Iterator[Ingress]:
    """Give the ways that have no VM."""
    stack = AsyncExitStack()
    try:
        yield runner.run(stack.enter_async_context(joints_alone(runner)))
    finally:
        runner.run(stack.aclose())


@pytest.fixture(scope="module")
def vm(runner: asyncio.Runner, guest_image: GuestImage, example_images: dict[str, ContainerImage]) -> Iterator[Guest]:
    """Give the way into a VM."""
    stack = AsyncExitStack()
    try:
        yield runner.run(stack.enter_async_context(through_a_guest(runner, guest_image, example_images["live"])))
    finally:
        runner.run(stack.aclose())


def in_milliseconds(samples: list[float]) -> list[float]:
    """Return seconds as milliseconds."""
    return [1000 * sample for sample in samples]


def transfer(ingress: Ingress, user: str, way: str, size: int) -> float:
    """Download or upload on a connection of its own; seconds."""
    with ingress.visitor(user) as visitor:
        return visitor.download(size) if way == "down" else visitor.upload(size)


def per_mebibyte(samples: list[float], size: int) -> list[float]:
    """Return seconds for a size as milliseconds for a MiB."""
    return [1000 * sample / (size / _MIB) for sample in samples]


def gigabytes(samples: list[float], size: int) -> str:
    """Return the median speed of a size, in words."""
    return f"{size / percentile(samples, 50) / 1e9:.2f} GB/s"


def test_ingress_added(joints: Ingress, record: Record) -> None:
    """Prove that bridge and relay make a request half as slow again at most."""
    with joints.visitor(ALICE) as alice, joints.visitor(BOB) as bob:
        joined, direct = map(in_milliseconds, joints.by_turns(bob.trip, alice.trip, rounds=_ROUND_TRIPS, warmup=20))
    added = [percentile(joined, percent) - percentile(direct, percent) for percent in (50, 99)]
    note = (
        f"a small request through Envoy, authorizer and both joints, without a VM: they add {added[0]:.3f} ms at p50, "
        f"{added[1]:.3f} at p99 ({percentile(direct, 99):.3f} to {percentile(joined, 99):.3f}); "
        "floor: Envoy led to the app's unix socket"
    )
    record("ingress_added", joined, floors=direct, unit="ms", max_ratio=1.5, emulated=False, note=note)


@pytest.mark.parametrize("way", ["down", "up"])
def test_ingress_throughput(joints: Ingress, record: Record, way: str) -> None:
    """Prove that 1 GiB takes at most four times as long through both joints."""
    joined, direct = joints.by_turns(
        lambda: transfer(joints, BOB, way, _TRANSFER), lambda: transfer(joints, ALICE, way, _TRANSFER), rounds=3
    )
    note = (
        f"{_TRANSFER // _MIB} MiB through Envoy and both joints, without a VM: {gigabytes(joined, _TRANSFER)}; "
        f"floor: {gigabytes(direct, _TRANSFER)} with Envoy led to the app's unix socket"
    )
    samples, floors = (per_mebibyte(each, _TRANSFER) for each in (joined, direct))
    record(f"ingress_throughput_{way}", samples, floors=floors, unit="ms/MiB", max_ratio=4.0, emulated=False, note=note)


def test_websocket_echo(joints: Ingress, record: Record) -> None:
    """Prove that of 200 WebSockets that speak at once every message is echoed, and measure how fast."""
    with ExitStack() as stack:
        opened = [asyncio.to_thread(WebSockets, joints, user, stack) for user in (BOB, ALICE)]
        bob, alice = [joints.runner.run(each) for each in opened]
        joined, direct = joints.by_turns(bob.echo, alice.echo, rounds=_ROUNDS)
    messages = WEBSOCKETS * MESSAGES
    speeds = [messages / percentile(samples, 50) for samples in (joined, direct)]
    note = (
        f"{WEBSOCKETS} WebSockets at once, messages of {MESSAGE} bytes, none lost: {speeds[0]:.0f} messages/s there "
        f"and back through both joints, without a VM; floor: {speeds[1]:.0f} with Envoy led to the app's unix socket"
    )
    per_message = [[1e6 * each / messages for each in samples] for samples in (joined, direct)]
    record("websocket_echo", per_message[0], floors=per_message[1], unit="us", max_ratio=6.0, emulated=False, note=note)


@pytest.mark.guest
@pytest.mark.timeout(600)
def test_ingress_added_in_a_vm(vm: Guest, record: Record, *, emulated: bool) -> None:
    """Measure a request to a container of a VM beside the same made inside that container."""
    with vm.ingress.visitor(BOB) as bob:
        joined, _ = vm.ingress.by_turns(bob.trip, lambda: 0.0, rounds=_TRIPS_OF_A_VM, warmup=5)
    inside, _ = vm.ingress.by_turns(lambda: vm.inside("GET", "/", times=_TRIPS_OF_A_VM), lambda: 0.0, rounds=3)
    samples, floors = map(in_milliseconds, (joined, inside))
    note = "a small request through Envoy, authorizer and both joints of a VM; floor: the same inside the container"
    record("ingress_added_vm", samples, floors=floors, unit="ms", emulated=emulated, note=note)


@pytest.mark.guest
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["down", "up"])
def test_ingress_throughput_of_a_vm(vm: Guest, record: Record, way: str, *, emulated: bool) -> None:
    """Measure how fast bytes pass from and to a container of a VM beside the same bytes inside that container."""
    size = _TRANSFER_OF_A_VM
    asked = ("GET", f"/download?size={size}", 0) if way == "down" else ("POST", "/upload", size)
    joined, inside = vm.ingress.by_turns(
        lambda: transfer(vm.ingress, BOB, way, size),
        lambda: vm.inside(asked[0], asked[1], size=asked[2]),
        rounds=3,
    )
    note = f"{size // _MIB} MiB through Envoy and both joints of a VM; floor: the same inside the container"
    samples, floors = (per_mebibyte(each, size) for each in (joined, inside))
    record(f"ingress_throughput_vm_{way}", samples, floors=floors, unit="ms/MiB", emulated=emulated, note=note)
