"""One process of the simulated binary, as the hub sees it: its API socket, its machine, its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chv53 import answers, api_socket
from chv53.answers import Answer
from chv53.command_line import Options
from chv53.config import Json
from chv53.events import EventLog
from chv53.rest import Request, serve_connection
from chv53.vmm import Vmm
from simulator.faults import Fault, FaultKind, Faults
from simulator.guest import SimulatedGuest
from simulator.machine import SimulatedMachine

BUILD_VERSION = "v53.0-simulated"
_ROOT = "/api/v1/"
_ACTS_BEFORE = frozenset({FaultKind.LOSE_REPLY, FaultKind.CRASH_AFTER})


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who runs the binary."""

    pid: int
    uid: int


class SimulatedProcess:
    """Serves one VM until its process is told to exit or is seen to be dead."""

    def __init__(
        self, options: Options, peer: Peer, *, faults: Faults, make_guest: Callable[[SimulatedMachine], SimulatedGuest]
    ) -> None:
        self.options = options
        self.peer = peer
        self.machine: SimulatedMachine | None = None
        self._faults = faults
        self._make_guest = make_guest
        self._vmm: Vmm | None = None

    @property
    def directory(self) -> Path:
        """The directory of the API socket, which tells VMs apart."""
        return self.options.api_socket.parent

    @property
    def guest(self) -> SimulatedGuest:
        """The guest that runs; raises LookupError when none does."""
        if self.machine is None or self.machine.guest is None:
            raise LookupError(f"no guest runs in {self.directory}")
        return self.machine.guest

    def runs(self) -> bool:
        """Whether the kernel still runs it; what serves it here learns of its death a moment later."""
        try:
            stat = Path(f"/proc/{self.peer.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}

    def kill(self) -> None:
        """Kill the process, as the kernel's out-of-memory killer would."""
        # Whoever runs it may have been faster, and have collected it: it is as dead as was asked for.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.peer.pid, signal.SIGKILL)

    async def serve(self) -> None:
        """Serve until the VMM exits; cancelled, everything vanishes as in a crash. Raises ApiSocketError."""
        lock = api_socket.take_lock(self.options.api_socket)
        events = self._open_events()
        try:
            os.chown(f"{self.options.api_socket}.lock", self.peer.uid, self.peer.uid)
            listener = api_socket.listen(self.options.api_socket)
            os.chown(self.options.api_socket, self.peer.uid, self.peer.uid)
            async with asyncio.TaskGroup() as group:
                self._vmm = Vmm(
                    make_machine=functools.partial(self._make_machine, group),
                    events=EventLog(events),
                    build_version=BUILD_VERSION,
                    pid=self.peer.pid,
                )
                serve = functools.partial(serve_connection, handle=self._handle)
                api = group.create_task(api_socket.accept_forever(listener, serve))
                await self._vmm.exited.wait()
                self.options.api_socket.unlink(missing_ok=True)
                api.cancel()
        finally:
            await self._vanish()
            os.close(lock)
            if events is not None:
                os.close(events)

    async def stop(self) -> None:
        """End as on SIGTERM."""
        if self._vmm is not None:
            await self._vmm.stop()

    async def _vanish(self) -> None:
        """Leave what a killed process leaves; after an orderly exit there is nothing left to do."""
        if self._vmm is not None:
            await self._vmm.abandon()
        if self.machine is not None:
            await self.machine.crash()

    def _open_events(self) -> int | None:
        if self.options.event_monitor is None:
            return None
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self.options.event_monitor, flags, 0o600)
        os.fchown(descriptor, self.peer.uid, self.peer.uid)
        return descriptor

    def _make_machine(self, group: asyncio.TaskGroup, config: Json) -> SimulatedMachine:
        self.machine = SimulatedMachine(config, owner=self.peer.uid, group=group, make_guest=self._make_guest)
        return self.machine

    async def _handle(self, request: Request) -> Answer | None:
        assert self._vmm is not None
        fault = self._faults.take(request.path.removeprefix(_ROOT), self.directory)
        if fault is None:
            return await self._vmm.handle(request)
        return await self._handle_badly(self._vmm, request, fault)

    async def _handle_badly(self, vmm: Vmm, request: Request, fault: Fault) -> Answer | None:
        if fault.kind is FaultKind.FAIL:
            return answers.errors(500, "Error from API", *fault.causes)
        if fault.kind is FaultKind.HANG:
            await fault.released.wait()
            return await vmm.handle(request)
        if fault.kind in _ACTS_BEFORE:
            await vmm.handle(request)
        if fault.kind is not FaultKind.LOSE_REPLY:
            self.kill()
            await asyncio.get_running_loop().create_future()  # the end comes from the process's death
        return None
