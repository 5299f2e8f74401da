"""The hub: makes the simulated binary and serves every process that runs it, in one event loop."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from chv53.api_socket import ApiSocketError, accept_forever, listen
from chv53.command_line import USAGE_STATUS, Options, UsageError, parse
from simulator import program
from simulator.faults import Faults
from simulator.guest import SimulatedGuest
from simulator.machine import SimulatedMachine
from simulator.process import BUILD_VERSION, Peer, SimulatedProcess

_PEER = struct.Struct("3i")
_TERMINATE = b"T"


class Hub:
    """An async context manager; `binary` is what to run in place of cloud-hypervisor while it is open.

    `directory` must be reachable for the uids of the VMs. `guest` makes the guest of each boot: subclass
    SimulatedGuest to have another.
    """

    def __init__(
        self, directory: Path, *, guest: Callable[[SimulatedMachine, Hub], SimulatedGuest] | None = None
    ) -> None:
        self.directory = directory
        self.binary = directory / "cloud-hypervisor"
        self.faults = Faults()
        self.make_guest = guest or SimulatedGuest
        self.processes: dict[Path, SimulatedProcess] = {}
        # Where the binary was started while another one ran in the same directory.
        self.doubles: list[Path] = []
        self._socket = directory / "hub.sock"
        self._guests = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        listener = listen(self._socket)
        self._socket.chmod(0o777)
        program.write(self.binary, self._socket)
        self._task = asyncio.create_task(accept_forever(listener, self._serve))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self.faults.clear()
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.result()
        self._socket.unlink(missing_ok=True)
        self.binary.unlink(missing_ok=True)

    def process(self, directory: Path) -> SimulatedProcess:
        """Return the process whose API socket lies in a directory; raises KeyError."""
        return self.processes[directory]

    def agent_socket(self) -> Path:
        """Return a fresh path for the gRPC server of one boot of a guest."""
        self._guests += 1
        return self.directory / f"agent-{self._guests}.sock"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(4), "big")
        directory, *given = (await reader.readexactly(size)).decode("utf-8", "surrogateescape").split("\0")
        peer = _peer(writer)
        try:
            options = parse(given)
        except UsageError as error:
            await _end(writer, USAGE_STATUS, str(error))
            return
        if options.version:
            await _end(writer, 0, f"cloud-hypervisor {BUILD_VERSION}\n")
            return
        await self._run(_absolute(options, Path(directory)), peer, reader, writer)

    async def _run(
        self, options: Options, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        process = SimulatedProcess(
            options, peer, faults=self.faults, make_guest=lambda machine: self.make_guest(machine, self)
        )
        before = self.processes.get(process.directory)
        if before is not None and before.runs():
            self.doubles.append(process.directory)
        self.processes[process.directory] = process
        serving = asyncio.create_task(process.serve())
        watching = asyncio.create_task(_watch(reader, process))
        try:
            await asyncio.wait({serving, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            serving.cancel()
            watching.cancel()
            await _finish({serving, watching})
            if self.processes.get(process.directory) is process:
                del self.processes[process.directory]
        if serving.cancelled():
            return  # the process is dead and needs no answer
        try:
            serving.result()
        except (ApiSocketError, OSError) as error:
            # Whoever started it may have killed it since, and taken its directory away: that is no end of the others.
            await _end(writer, 1, str(error))
        else:
            await _end(writer, 0, "")


async def _finish(tasks: set[asyncio.Task[None]]) -> None:
    """Wait for cancelled tasks to clean up, even while being cancelled: a half-vanished VM would leak its servers."""
    interruption: asyncio.CancelledError | None = None
    while any(not task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            interruption = error
    if interruption is not None:
        raise interruption


async def _watch(reader: asyncio.StreamReader, process: SimulatedProcess) -> None:
    """Follow the process: a byte is SIGTERM, the end of the stream its death."""
    while await reader.read(1) == _TERMINATE:
        await process.stop()


async def _end(writer: asyncio.StreamWriter, status: int, text: str) -> None:
    """Let the process print and exit."""
    writer.write(bytes([status]) + text.encode())
    await writer.drain()


def _peer(writer: asyncio.StreamWriter) -> Peer:
    end = writer.get_extra_info("socket")
    pid, uid, _gid = _PEER.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return Peer(pid=pid, uid=uid)


def _absolute(options: Options, directory: Path) -> Options:
    monitor = options.event_monitor
    return replace(
        options,
        api_socket=directory / options.api_socket,
        event_monitor=directory / monitor if monitor is not None else None,
    )
