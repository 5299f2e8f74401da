"""A container runtime without containers: the same processes, descriptors and signals, on the machine itself."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cellmesh.guest.containers.cgroup import Cgroup
from cellmesh.guest.containers.model import ContainerSpec
from cellmesh.guest.containers.registry import Containers
from cellmesh.guest.containers.runtime import Command, ImageMissing, StartFailed, Stdio
from cellmesh.guest.containers.slots import Slots
from cellmesh.guest.netns import NetworkNamespace
from cellmesh.guest.reaper import Process, Reaper
from cellmesh.guest.terminal import set_size

MISSING_IMAGE = "sha256:" + "f" * 64
IMAGE = "sha256:" + "a" * 64


class LocalContainer:
    """A process in place of a container."""

    def __init__(self, reaper: Reaper, directory: Path, process: Process) -> None:
        self._reaper = reaper
        self.process = process
        self.cgroup = Cgroup(directory)
        self.network = NetworkNamespace(os.open("/proc/self/ns/net", os.O_RDONLY))
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
        self.network.close()
        self.removed = True


class LocalRuntime:
    """Runs a specification's argv; counts its starts."""

    def __init__(self, reaper: Reaper, directory: Path) -> None:
        self._reaper = reaper
        self._directory = directory
        self.started: list[LocalContainer] = []

    async def start(self, name: str, slot: int, spec: ContainerSpec, stdio: Stdio) -> LocalContainer:
        """Start argv; an image named MISSING_IMAGE is attached nowhere."""
        if spec.image == MISSING_IMAGE:
            raise ImageMissing("no disk with that serial is attached")
        directory = Path(tempfile.mkdtemp(prefix=name, dir=self._directory))
        (directory / "cgroup.procs").touch()
        try:
            process = self._reaper.spawn(spec.argv, stdio.stdin, stdio.stdout, stdio.stderr)
        except OSError as error:
            raise StartFailed(str(error)) from error
        container = LocalContainer(self._reaper, directory, process)
        self.started.append(container)
        return container


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCell:
    """The containers of a cell whose processes are this machine's."""

    containers: Containers
    runtime: LocalRuntime
    group: asyncio.TaskGroup


@asynccontextmanager
async def local_cell() -> AsyncIterator[LocalCell]:
    """Give a cell; everything it started is stopped and collected at the end."""
    reaper = Reaper()
    reaper.attach()
    try:
        with tempfile.TemporaryDirectory() as directory:
            runtime = LocalRuntime(reaper, Path(directory))
            async with asyncio.TaskGroup() as group:
                slots = Slots(Path(directory, "slots.json"))
                containers = Containers(runtime=lambda: runtime, slots=slots, random=lambda: 0.5, group=group)
                try:
                    yield LocalCell(containers=containers, runtime=runtime, group=group)
                finally:
                    await containers.stop_all(0.0)
    finally:
        reaper.detach()


async def until(condition: Callable[[], bool], *, within: float = 20.0) -> None:
    """Wait until the condition holds; raises TimeoutError."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event of its own
            await asyncio.sleep(0.002)
