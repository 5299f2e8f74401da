"""What the rest of the agent asks of whatever runs containers."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cellmesh.guest.containers.cgroup import Cgroup
from cellmesh.guest.containers.model import ContainerSpec
from cellmesh.guest.netns import NetworkNamespace
from cellmesh.guest.reaper import Process


class StartFailed(Exception):
    """The process could not be started; the message says why and what to do.

    `exit_code` is what a shell would end with: 127 for a program that is not there, 126 for one that is not executable.
    """

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class KeyFound(Exception):
    """The environment or the image carries a provider key."""


class ImageMissing(Exception):
    """No disk carries the image."""


class ImageBusy(Exception):
    """Something in the guest still holds the image's disk; the message says what."""


class NoRoom(Exception):
    """The data disk has no room for the container's files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stdio:
    """Descriptors of a process's three streams.

    Never a device: crun gives what it is passed to the container's user, and the machine's /dev/null is everybody's.
    """

    stdin: int
    stdout: int
    stderr: int


def empty_input() -> int:
    """Return a descriptor that is at its end, for a process without input."""
    read_end, write_end = os.pipe()
    os.close(write_end)
    return read_end


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command to run in a container; an empty `working_dir` is the container's."""

    argv: Sequence[str]
    environment: Sequence[tuple[str, str]] = ()
    working_dir: str = ""


class RunningContainer(Protocol):
    """A container whose process was started."""

    process: Process
    cgroup: Cgroup
    network: NetworkNamespace
    stop_signal: int

    async def execute(self, command: Command, stdio: Stdio) -> Process:
        """Run a command in it; raises StartFailed."""
        ...

    async def execute_on_terminal(self, command: Command, rows: int, columns: int) -> tuple[Process, int]:
        """Run a command on a terminal of its own; returns it and the terminal's other end. Raises StartFailed."""
        ...

    async def remove(self) -> None:
        """Kill what is left of it and let go of all it used, except its files."""
        ...


class Runtime(Protocol):
    """Starts containers."""

    async def start(self, name: str, slot: int, spec: ContainerSpec, stdio: Stdio) -> RunningContainer:
        """Start a container; raises StartFailed, ImageMissing, KeyFound and NoRoom."""
        ...

    async def release_image(self, serial: str) -> None:
        """Let go of the disk with this serial; one that is not in use is fine. Raises ImageBusy and OSError."""
        ...

    async def remove(self, name: str, *, persistent: bool) -> bool:
        """Put the files of a stopped container out of use; returns True if none of its files is left in use.

        Lasting directories stay unless `persistent`. Raises OSError.
        """
        ...
