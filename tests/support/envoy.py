"""A real Envoy with the hypervisor's configuration, and toys in the place of containers and of the authorizer."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import grpc

from cellmesh.envoy.discovery.v3 import discovery_pb2_grpc
from cellmesh.hypervisor.edge.admin import EdgeAway, EnvoyAdmin
from cellmesh.hypervisor.edge.binary import Envoy
from cellmesh.hypervisor.edge.bootstrap import bootstrap, write
from cellmesh.hypervisor.edge.certificate import EdgeAuthority, secret
from cellmesh.hypervisor.edge.discovery import Discovery, DiscoveryServicer
from cellmesh.hypervisor.edge.endpoint import Endpoint
from cellmesh.hypervisor.edge.options import EdgeOptions, Json, Listener
from cellmesh.hypervisor.edge.probe import WorkerProbe
from cellmesh.mesh.identity import EDGE
from cellmesh.mesh.interceptor import PolicyInterceptor
from support.toys import Authorizer, Toy

ALICE = "0a11ce00-0000-4000-8000-000000000001"
BOB = "0b0b0000-0000-4000-8000-000000000002"
WORKERS = 2
LOG_FLUSH = timedelta(milliseconds=50)
READY_SECONDS = 30.0
Change = Callable[[EdgeOptions], EdgeOptions]
Spoil = Callable[[Json], Json]


@dataclass(eq=False)
class EdgeUnderTest:
    """What a test gets: change what is desired, ask, look."""

    options: EdgeOptions
    discovery: Discovery
    authorizer: Authorizer
    admin: EnvoyAdmin
    binary: Envoy
    process: subprocess.Popen[bytes] | None = None
    toys: dict[str, Toy] = field(default_factory=dict)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    hypervisor: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def socket(self) -> Path:
        """Where it is asked without TLS."""
        path = self.options.listeners[0].path
        assert path is not None
        return path

    async def toy(self, name: str) -> Toy:
        """Return a container of this name that serves."""
        if name not in self.toys:
            self.toys[name] = await self.stack.enter_async_context(
                Toy(name=name, path=self.options.directory / f"{name}.sock").serving()
            )
        return self.toys[name]

    async def lead(self, cluster: str, name: str, generation: int = 1) -> Toy:
        """Let a cluster lead to a container and wait until it does."""
        toy = await self.toy(name)
        endpoint = Endpoint(path=toy.path, vm_id=f"vm-{name}", container=name, epoch=3, generation=generation)
        await self.discovery.served(cluster, self.discovery.put({cluster: endpoint}), timeout=READY_SECONDS)
        return toy

    async def start_hypervisor(self) -> None:
        """Serve discovery."""
        server = grpc.aio.server(interceptors=[PolicyInterceptor(lambda _: EDGE)], options=[("grpc.so_reuseport", 0)])
        discovery_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(DiscoveryServicer(self.discovery), server)
        server.add_insecure_port(f"unix:{self.options.hypervisor_socket}")
        await server.start()
        self.hypervisor.push_async_callback(server.stop, None)

    async def stop_hypervisor(self) -> None:
        """Stop serving discovery, at once."""
        await self.hypervisor.aclose()
        # An Envoy that counts as connected still would be waited for, or taken for the one that comes back.
        await until(lambda: not self.discovery.connected)

    async def start_envoy(self) -> None:
        """Start Envoy and wait until it is ready and connected."""
        command = self.binary.command(self.options.bootstrap_file, concurrency=WORKERS, flush=LOG_FLUSH)
        log = self.options.directory / "envoy.log"
        with log.open("ab") as file:
            self.process = subprocess.Popen(  # noqa: ASYNC220  # a fork of milliseconds
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not (await self._ready() and self.discovery.connected):
                    assert self.process.poll() is None, log.read_text()[-2000:]
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(log.read_text()[-2000:]) from None

    def kill_envoy(self) -> None:
        """End Envoy without a word."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def _ready(self) -> bool:
        try:
            return await self.admin.ready()
        except EdgeAway:
            return False


@asynccontextmanager
async def running_edge(
    change: Change = lambda options: options, spoil: Spoil = lambda config: config
) -> AsyncIterator[EdgeUnderTest]:
    """Yield an edge: Envoy, the hypervisor's discovery and an authorizer; all is gone afterwards.

    `change` sets other options; `spoil` takes hardening away, for tests of the tests.
    """
    directory = Path(tempfile.mkdtemp(prefix="edge."))
    options = change(
        EdgeOptions(
            directory=directory,
            listeners=(Listener(path=directory / "in.sock", tls=False),),
            domains=("cell.test",),
            # It is in this process, which may be busy with what it asks.
            authorizer_timeout=timedelta(seconds=READY_SECONDS),
        )
    )
    write(options.certificate_file, secret(EdgeAuthority(directory).issue(options.domains)))
    write(options.bootstrap_file, spoil(bootstrap(options)))
    admin = EnvoyAdmin(options.admin_socket)
    probe = WorkerProbe(options.probe_socket, admin)
    edge = EdgeUnderTest(
        options=options,
        discovery=Discovery(proof=probe),
        authorizer=Authorizer(path=options.authorizer_socket),
        admin=admin,
        binary=await Envoy.find(),
    )
    async with edge.stack:
        try:
            await edge.stack.enter_async_context(edge.authorizer.serving())
            edge.discovery.put({})
            await edge.start_hypervisor()
            await edge.start_envoy()
            yield edge
        finally:
            probe.close()
            edge.kill_envoy()
            await edge.stop_hypervisor()
            edge.stack.callback(shutil.rmtree, directory)


async def furnish(edge: EdgeUnderTest) -> None:
    """Give Alice and Bob their containers."""
    await edge.lead(f"{ALICE}/live", "alice-live")
    await edge.lead(f"{ALICE}/dev", "alice-dev")
    await edge.lead(f"{ALICE}/_notes", "alice-notes")
    await edge.lead(f"{BOB}/live", "bob-live")


def with_limits(**limits: object) -> Change:
    """Return the change that sets these limits."""
    return lambda options: replace(options, limits=replace(options.limits, **limits))


async def until(condition: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.01)
