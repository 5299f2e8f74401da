"""A container runtime without containers: the same processes, descriptors and signals, on the machine itself."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cellmesh.guest import vsock
from cellmesh.guest.containers.cgroup import Cgroup
from cellmesh.guest.containers.model import ContainerSpec, ContainerStatus
from cellmesh.guest.containers.registry import Containers
from cellmesh.guest.containers.runtime import Command, ImageBusy, ImageMissing, StartFailed, Stdio
from cellmesh.guest.containers.slots import Slots
from cellmesh.guest.netns import NetworkNamespace
from cellmesh.guest.reaper import Process, Reaper
from cellmesh.guest.terminal import set_size

MISSING_IMAGE = "sha256:" + "f" * 64
IMAGE = "sha256:" + "a" * 64
FIRST_PORT = 1 << 16


class HostListener(socket.socket):
    """A unix listener whose peers have the context id of a vsock peer: the host's, unless said otherwise."""

    peer_cid = vsock.HOST_CID

    def accept(self) -> tuple[socket.socket, tuple[int, int]]:
        """Accept as a vsock listener does."""
        return super().accept()[0], (self.peer_cid, 1 << 30)


def listen_for(path: Path, port: int) -> HostListener:
    """Listen on a port; one that is taken raises OSError, as it does for AF_VSOCK."""
    listener = HostListener(socket.AF_UNIX)
    try:
        listener.bind(f"{path}/{port}")
        listener.listen(256)
    except OSError:
        listener.close()
        raise
    return listener


class LocalContainer:
    """A process in place of a container."""

    def __init__(self, reaper: Reaper, directory: Path, process: Process, network: NetworkNamespace | None) -> None:
        self._reaper = reaper
        self.process = process
        self.cgroup = Cgroup(directory)
        self.network = network or NetworkNamespace(os.open("/proc/self/ns/net", os.O_RDONLY))
        self._owns_network = network is None
        self.stop_signal: int = signal.SIGTERM
        self.removed = False

    async def execute(self, command: Command, stdio: Stdio) -> Process:
        """Start the command beside the process."""
        environment = {"PATH": os.environ["PATH"], **dict(command.environment)}
        try:
            return self._reaper.spawn(command.argv, stdio.stdin, stdio.stdout, stdio.stderr, environment=environment)
        except OSError as error:
            raise StartFailed(str(error)) from error

    async def execute_on_terminal(self, command: Command, rows: int, columns: int) -> tuple[Process, int]:
        """Start the command on a pseudo-terminal."""
        master, slave = os.openpty()
        set_size(master, rows, columns)
        try:
            return await self.execute(command, Stdio(stdin=slave, stdout=slave, stderr=slave)), master
        finally:
            os.close(slave)

    async def remove(self) -> None:
        """Wait for the process and let its namespace go."""
        await asyncio.shield(self.process.exited)
        if self._owns_network:
            self.network.close()
        self.removed = True


class LocalRuntime:
    """Runs a specification's argv; counts its starts. `apart` gives each name a network namespace, as crun has one."""

    def __init__(self, reaper: Reaper, directory: Path, *, apart: bool) -> None:
        self._reaper = reaper
        self._directory = directory
        self._apart = apart
        self._networks: dict[str, NetworkNamespace] = {}
        self.started: list[LocalContainer] = []
        self.released: list[str] = []
        self.removed: list[tuple[str, bool]] = []
        self.busy = ""
        self.disk_error: OSError | None = None

    async def start(self, name: str, slot: int, spec: ContainerSpec, stdio: Stdio) -> LocalContainer:
        """Start argv; an image named MISSING_IMAGE is attached nowhere."""
        if spec.image == MISSING_IMAGE:
            raise ImageMissing("no disk with that serial is attached")
        directory = Path(tempfile.mkdtemp(prefix=name, dir=self._directory))
        (directory / "cgroup.procs").touch()
        network = self._network(name) if self._apart else None
        enter = ("/usr/bin/nsenter", f"--net={network.path}") if network else ()
        try:
            process = self._reaper.spawn((*enter, *spec.argv), stdio.stdin, stdio.stdout, stdio.stderr)
        except OSError as error:
            raise StartFailed(str(error)) from error
        container = LocalContainer(self._reaper, directory, process, network)
        self.started.append(container)
        return container

    async def release_image(self, serial: str) -> None:
        """Note what was released; `busy` says why it cannot be."""
        if self.busy:
            raise ImageBusy(self.busy)
        self.released.append(serial)

    async def remove(self, name: str, *, persistent: bool) -> bool:
        """Note what was removed; lasting directories are what remains of a container."""
        if self.disk_error is not None:
            raise self.disk_error
        self.removed.append((name, persistent))
        return persistent

    def _network(self, name: str) -> NetworkNamespace:
        if name not in self._networks:
            self._networks[name] = NetworkNamespace.create()
        return self._networks[name]

    def close(self) -> None:
        """Let the namespaces go."""
        for network in self._networks.values():
            network.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCell:
    """The containers of a cell whose processes are this machine's, and whose ports are sockets in `ports`."""

    containers: Containers
    runtime: LocalRuntime
    group: asyncio.TaskGroup
    ports: Path
    _unused: Iterator[int] = field(default_factory=lambda: itertools.count(FIRST_PORT))

    async def start(
        self, name: str, generation: int, spec: ContainerSpec, ingress_port: int | None = None
    ) -> ContainerStatus:
        """Start a generation, at a port that none before had unless one is given."""
        return await self.containers.start(name, generation, spec, ingress_port or next(self._unused))


@asynccontextmanager
async def local_cell(*, apart: bool = False) -> AsyncIterator[LocalCell]:
    """Give a cell; everything it started is stopped and collected at the end. `apart` needs root."""
    reaper = Reaper()
    reaper.attach()
    try:
        with tempfile.TemporaryDirectory() as directory:
            runtime = LocalRuntime(reaper, Path(directory), apart=apart)
            ports = Path(directory, "ports")
            ports.mkdir()
            async with asyncio.TaskGroup() as group:
                slots = Slots(Path(directory, "slots.json"))
                containers = Containers(
                    runtime=lambda: runtime,
                    slots=slots,
                    listen=functools.partial(listen_for, ports),
                    random=lambda: 0.5,
                    group=group,
                )
                try:
                    yield LocalCell(containers=containers, runtime=runtime, group=group, ports=ports)
                finally:
                    await containers.stop_all(0.0)
                    runtime.close()
    finally:
        reaper.detach()


async def until(condition: Callable[[], bool], *, within: float = 60.0) -> None:
    """Wait until the condition holds; raises TimeoutError."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event of its own
            await asyncio.sleep(0.002)
