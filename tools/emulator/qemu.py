"""The machine of the emulator: QEMU as a child that dies with this process, and the vsock device in it."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import os
import signal
import socket
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chv53 import boot_files
from chv53.config import Json
from chv53.machine import Exit, MachineError
from emulator.qemu_arguments import (
    arguments,
    block_device,
    block_node,
    device_name,
    node_name,
    port_count,
    ports_at_boot,
)
from emulator.qmp import Qmp, QmpError
from emulator.vsock_device import VsockDevice

_PR_SET_PDEATHSIG = 1
_FIRST_SLOT = 4
_IDLE_LATENCY = {"min": 2**64 - 1, "max": 2**64 - 1, "avg": (2**64 - 1) // 10_000}
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the installation decides: the accelerator and where QEMU's complaints go."""

    accelerator: str
    log: int


class Qemu:
    """One machine, from boot to shutdown. Implements `chv53.machine.Machine`."""

    def __init__(self, config: Json, settings: Settings) -> None:
        self._config = config
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._vsock: VsockDevice | None = None
        self._qmp: Qmp | None = None
        self._ended = asyncio.Event()
        self._reason = Exit.FAILED
        # The root port of each disk that can be unplugged.
        self._ports: dict[str, int] = {}
        self._fixed: frozenset[str] = frozenset()
        self._port_count = port_count(())
        self._released: list[str] = []

    @property
    def devices(self) -> Collection[str]:
        """The ids of the disks that it has."""
        return self._fixed | self._ports.keys()

    async def boot(self) -> None:
        """Start QEMU; returns when its control socket answers and the processors run."""
        boot_files.check(self._config)
        disks = self._config.get("disks", [])
        self._ports = ports_at_boot(disks)
        self._port_count = port_count(disks)
        self._fixed = frozenset(disk["id"] for disk in disks) - self._ports.keys()
        control, theirs = socket.socketpair()
        vsock = self._open_vsock()
        try:
            self._start(theirs, vsock)
        finally:
            theirs.close()
            if vsock is not None:
                vsock.close()
        try:
            self._qmp = await Qmp.connect(control, self._on_event)
        except QmpError as error:
            await self.shutdown()
            raise MachineError("Cannot start the emulated machine", str(error)) from error

    async def shutdown(self) -> None:
        """Kill QEMU, close the vsock."""
        if self._qmp is not None:
            await self._qmp.close()
            self._qmp = None
        if self._process is not None:
            self._process.kill()
            await self._ended.wait()
            self._process.wait()
        if self._vsock is not None:
            self._vsock.close()
            self._vsock = None

    async def wait(self) -> Exit:
        """Return why QEMU ended on its own."""
        await self._ended.wait()
        if self._qmp is not None:
            # Its last word, which is why it ended, may still be on the way: its end and that come by two sockets.
            await self._qmp.heard_out()
        return self._reason

    async def pause(self) -> None:
        """Stop the processors."""
        await self._execute("stop")

    async def resume(self) -> None:
        """Let the processors run."""
        await self._execute("cont")

    async def power_button(self) -> None:
        """Press the ACPI power button."""
        await self._execute("system_powerdown")

    async def add_disk(self, disk: Json) -> int:
        """Plug a disk into a free root port."""
        boot_files.check_disk(disk)
        free = sorted(set(range(self._port_count)) - set(self._ports.values()))
        if not free:
            raise MachineError("Error from device manager", "No available PCI device slot")
        await self._drop_released()
        await self._execute("blockdev-add", **block_node(disk))
        self._released.append(disk["id"])
        await self._execute("device_add", **block_device(disk), bus=f"port{free[0]}")
        self._released.remove(disk["id"])
        self._ports[disk["id"]] = free[0]
        return _FIRST_SLOT + len(self._config.get("disks", [])) + free[0]

    async def remove_device(self, device: str) -> None:
        """Ask the guest to let go of a disk; its port is free when the guest has."""
        if device in self._fixed:
            raise MachineError("Error from device manager", f"the emulator cannot unplug {device}: see its README")
        await self._execute("device_del", id=device_name(device))

    def counters(self) -> dict[str, Any]:
        """Return the counters of disks that were never used: QEMU's own are not read."""
        counts = {"read_bytes": 0, "write_bytes": 0, "read_ops": 0, "write_ops": 0}
        latency = {f"{way}_latency_{kind}": value for way in ("read", "write") for kind, value in _IDLE_LATENCY.items()}
        return {disk["id"]: {**counts, **latency} for disk in self._config.get("disks", [])}

    def _open_vsock(self) -> socket.socket | None:
        vsock = self._config.get("vsock")
        if vsock is None:
            return None
        ours, theirs = socket.socketpair()
        try:
            self._vsock = VsockDevice(Path(vsock["socket"]), guest_cid=vsock["cid"], front_end=ours)
        except OSError as error:
            theirs.close()
            raise boot_files.vsock_error(error) from error
        return theirs

    def _start(self, control: socket.socket, vsock: socket.socket | None) -> None:
        inherited = [end.fileno() for end in (control, vsock) if end is not None]
        line = arguments(
            self._config,
            accelerator=self._settings.accelerator,
            vsock=None if vsock is None else vsock.fileno(),
            control=control.fileno(),
        )
        self._process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=self._settings.log,
            stderr=self._settings.log,
            pass_fds=inherited,
            env={"PATH": "/usr/bin:/bin"},
            preexec_fn=functools.partial(_die_with_parent, os.getpid()),  # system calls only, no lock is taken
        )
        self._watch_process(self._process.pid)

    def _watch_process(self, pid: int) -> None:
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(pid)

        def ended() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            self._ended.set()

        loop.add_reader(pidfd, ended)

    def _on_event(self, event: str, data: dict[str, Any]) -> None:
        if event == "SHUTDOWN":
            reasons = {"guest-shutdown": Exit.POWER_OFF, "guest-reset": Exit.RESET, "guest-panic": Exit.RESET}
            self._reason = reasons.get(data.get("reason", ""), Exit.FAILED)
        elif event == "DEVICE_DELETED" and "device" in data:
            self._free_port(data["device"])

    def _free_port(self, name: str) -> None:
        for device, _port in list(self._ports.items()):
            if device_name(device) == name:
                del self._ports[device]
                self._released.append(device)

    async def _drop_released(self) -> None:
        """Close the images of disks that the guest has let go of, or that never came to be devices."""
        while self._released:
            await self._execute("blockdev-del", **{"node-name": node_name(self._released[0])})
            del self._released[0]

    async def _execute(self, command: str, **given: Any) -> Any:
        if self._qmp is None:
            return None  # a boot that failed half-way: there are devices, but no processor that could notice
        try:
            return await self._qmp.execute(command, **given)
        except QmpError as error:
            raise MachineError("Error from device manager", str(error)) from error


def _die_with_parent(parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before the kernel knew with whom we are to end
