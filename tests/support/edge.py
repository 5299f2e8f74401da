"""A node with its edge: hypervisor, Envoy, activator and development authenticator, each a process of the test's.

async with edge_on_simulator() as edge:
    cell = await edge.cell()
    async with edge.visitor(cell.user_id) as visitor:
        async with visitor.get("/") as answer:
            ...
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import aiohttp
from google.protobuf import duration_pb2

from cellmesh.api.common.v1 import container_pb2
from cellmesh.api.hypervisor.v1 import (
    route_pb2,
    route_service_pb2,
    route_service_pb2_grpc,
    vm_service_pb2,
)
from cellmesh.cli.up.envoy import command, lowered
from cellmesh.hypervisor.edge.admin import EdgeAway, EnvoyAdmin
from cellmesh.hypervisor.edge.binary import Envoy
from cellmesh.hypervisor.edge.certificate import EdgeAuthority
from cellmesh.hypervisor.settings import HypervisorSettings
from simulator import Hub
from support.hollow_images import hollow_container, hollow_guest
from support.node import SECONDS, Node, node, short_directory
from support.ports import held_port

LIVE, DEV = "sandbox-live", "sandbox-dev"
HOST = "localhost"
_LOG_BYTES = 4000


class Part:
    """One process of the edge; killed and started at will, and always ended."""

    def __init__(
        self,
        name: str,
        argv: tuple[str, ...],
        *,
        log: Path,
        ready: Callable[[], Awaitable[bool]],
        environment: Mapping[str, str],
        descriptors: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self.log = log
        self._argv = argv
        self._ready = ready
        self._environment = environment
        self._descriptors = descriptors
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Return the id of its process."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it and wait until it is ready; AssertionError with its log if it ends before."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self._environment),
                pass_fds=self._descriptors,
            )
        async with asyncio.timeout(SECONDS):
            while not await self._ready():
                if self._process.returncode is not None:
                    raise AssertionError(f"{self.name} ended: {self.last_words()}")
                await asyncio.sleep(0.02)

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send its process a signal and wait until it is over."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.send_signal(number)
            async with asyncio.timeout(SECONDS):
                await self._process.wait()

    def last_words(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-_LOG_BYTES:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A VM that runs, and whose it is."""

    vm_id: str
    user_id: str


@dataclass(eq=False)
class Edge:
    """What a test gets."""

    it: Node
    port: int
    trust: ssl.SSLContext
    admin: EnvoyAdmin
    envoy: Part
    activator: Part
    authenticator: Part
    image: str = ""
    hub: Hub | None = None
    parts: list[Part] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        """Return where the sockets of the edge lie."""
        return self.it.run_dir / "edge"

    @property
    def url(self) -> str:
        """Return the address of the edge."""
        return f"https://{HOST}:{self.port}"

    @property
    def routes(self) -> route_service_pb2_grpc.RouteServiceAsyncStub:
        """Return the stub of RouteService."""
        return route_service_pb2_grpc.RouteServiceStub(self.it.channel)

    @asynccontextmanager
    async def visitor(self, user_id: str, *, connections: int = 0) -> AsyncIterator[aiohttp.ClientSession]:
        """Yield a client of a user with at most so many connections, 0 is any number; it never asks a second time."""
        headers = {"authorization": f"Bearer dev-{user_id}"} if user_id else {}
        connector = aiohttp.TCPConnector(ssl=self.trust, limit=connections, family=socket.AF_INET)
        timeout = aiohttp.ClientTimeout(total=SECONDS)
        async with aiohttp.ClientSession(
            self.url, connector=connector, headers=headers, timeout=timeout, auto_decompress=False
        ) as session:
            session._retry_connection = False
            yield session

    async def cell(self, user_id: str = "", *, containers: tuple[str, ...] = (LIVE,)) -> Cell:
        """Run a VM with these containers for a user, and return it once the edge leads to all of them."""
        cell = await self.cell_inside(user_id, containers=containers)
        for name in containers:
            await self.until_served(cell, prefix_of(name))
        return cell

    async def cell_inside(self, user_id: str = "", *, containers: tuple[str, ...] = (LIVE,)) -> Cell:
        """Run a VM with these containers for a user, whatever the edge knows of it."""
        vm = await self.it.running(user_id=user_id)
        for name in containers:
            await self.it.start_container(vm.vm_id, self.image, name=name)
            await self.it.until_container(vm.vm_id, name, container_pb2.CONTAINER_STATE_RUNNING)
        return Cell(vm_id=vm.vm_id, user_id=vm.user_id)

    async def until_served(self, cell: Cell, prefix: str) -> None:
        """Wait until a container answers at a prefix."""
        async with self.visitor(cell.user_id) as visitor, asyncio.timeout(self.it.patience):
            while True:
                async with visitor.get(prefix) as answer:
                    if answer.status == 200:
                        return
                await asyncio.sleep(0.01)

    async def switch(
        self, cell: Cell, container: str, *, prefix: str = "/", generation: int = 0, drain: timedelta | None = None
    ) -> route_pb2.Route:
        """Point a route at a container and return it as it is served."""
        request = route_service_pb2.SwitchRouteRequest(
            request_id=str(uuid.uuid4()),
            vm_id=cell.vm_id,
            prefix=prefix,
            target=route_pb2.RouteTarget(container_name=container, generation=generation),
        )
        if drain is not None:
            request.drain_timeout.CopyFrom(_duration(drain))
        return (await self.routes.SwitchRoute(request)).route

    async def delete(self, cell: Cell) -> None:
        """Delete a cell's VM and wait until it is gone."""
        await self.it.vms.DeleteVm(vm_service_pb2.DeleteVmRequest(request_id=str(uuid.uuid4()), vm_id=cell.vm_id))
        await self.it.until_gone(cell.vm_id)


def prefix_of(container: str) -> str:
    """Return where a container is served unless a route was switched."""
    return {LIVE: "/", DEV: "/dev/"}.get(container, f"/_/{container}/")


@asynccontextmanager
async def edge_of(it: Node, port: int, *, configuration: str = "envoy.json") -> AsyncIterator[Edge]:
    """Run the other processes of the edge beside a hypervisor that was started to listen at a port."""
    directory, logs = it.run_dir / "edge", it.run_dir.parent
    settings = HypervisorSettings.model_validate(it.settings)
    admin = EnvoyAdmin(directory / "admin.sock")
    binary = await Envoy.find()
    program = os.open(binary.path, os.O_PATH)
    environment = it.environment()
    activator = Part(
        "activator",
        (sys.executable, "-m", "cellmesh.hypervisor.activator"),
        log=logs / "activator.log",
        ready=lambda: _accepts(directory / "activator.sock"),
        environment=environment,
    )
    authenticator = Part(
        "authenticator",
        (sys.executable, "-m", "dev_authenticator", "--socket", str(directory / "authz.sock"), *_group(settings)),
        log=logs / "authenticator.log",
        ready=lambda: _accepts(directory / "authz.sock"),
        environment=environment,
    )
    named = binary.command(directory / configuration, concurrency=os.cpu_count() or 1)
    envoy = Part(
        "envoy",
        lowered(command(program, named[1:]), uid=settings.edge_user, gid=settings.edge_group, port=port),
        log=logs / "envoy.log",
        ready=lambda: _connected(admin),
        environment={},
        descriptors=(program,),
    )
    parts = [activator, authenticator, envoy]
    try:
        for part in parts:
            await part.start()
        yield Edge(
            it=it,
            port=port,
            trust=ssl.create_default_context(cadata=_authority(it)),
            admin=admin,
            envoy=envoy,
            activator=activator,
            authenticator=authenticator,
        )
    finally:
        for part in reversed(parts):
            await part.end()
        os.close(program)


@asynccontextmanager
async def edge_on_simulator(
    run: Callable[..., AbstractAsyncContextManager[Node]] = node,
    line: Callable[[Path], AbstractAsyncContextManager[str]] | None = None,
    **settings: object,
) -> AsyncIterator[Edge]:
    """Run a node on simulated VMs with its edge; with `node_here` its hypervisor can be tampered with.

    `line` is given the directory of the edge and yields the name of the configuration Envoy is to have.
    """
    with short_directory() as directory:
        images = directory / "state" / "images"
        hollow_guest(images)
        image = hollow_container(images)
        async with AsyncExitStack() as stack:
            port = stack.enter_context(held_port())
            hub = await stack.enter_async_context(Hub(directory / "hub"))
            it = await stack.enter_async_context(run(directory, hub.binary, **listening(port), **settings))
            named = (
                {} if line is None else {"configuration": await stack.enter_async_context(line(it.run_dir / "edge"))}
            )
            edge = await stack.enter_async_context(edge_of(it, port, **named))
            edge.image, edge.hub = image, hub
            yield edge


def listening(port: int) -> dict[str, object]:
    """Return the settings of a hypervisor whose edge listens at a port."""
    return {"edge_listen": f"127.0.0.1:{port}"}


def free_port() -> int:
    """Return a port nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _authority(it: Node) -> str:
    return EdgeAuthority(it.state_dir).certificate_pem.decode()


def _group(settings: HypervisorSettings) -> tuple[str, ...]:
    return () if settings.edge_group is None else ("--gid", str(settings.edge_group))


def _duration(value: timedelta) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromTimedelta(value)
    return duration


async def _accepts(path: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True


async def _connected(admin: EnvoyAdmin) -> bool:
    try:
        return await admin.ready() and (await admin.updates()).connected
    except EdgeAway:
        return False
