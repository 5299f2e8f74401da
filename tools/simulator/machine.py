"""The machine of the simulator: it checks and makes what the real one would, then lets a simulated guest play."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chv53 import boot_files
from chv53.config import Json
from chv53.machine import Exit, MachineError
from simulator.vsock import SimulatedVsock

if TYPE_CHECKING:
    from simulator.guest import SimulatedGuest

_FIRST_SLOT = 4
_SLOTS = 26  # What the other devices leave of the 32 of a PCI bus.


class SimulatedMachine:
    """One machine, from boot to shutdown. Implements `chv53.machine.Machine`."""

    def __init__(
        self,
        config: Json,
        *,
        owner: int,
        group: asyncio.TaskGroup,
        make_guest: Callable[[SimulatedMachine], SimulatedGuest],
    ) -> None:
        self.config = config
        self.vsock: SimulatedVsock | None = None
        self.guest: SimulatedGuest | None = None
        self.devices: set[str] = set()
        self._owner = owner
        self._group = group
        self._make_guest = make_guest
        self._tasks: list[asyncio.Task[None]] = []
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    @property
    def serials(self) -> list[str]:
        """The serial of each disk that is plugged in."""
        return [disk["serial"] for disk in self.config.get("disks", []) if "serial" in disk]

    async def boot(self) -> None:
        """Check the files, bind the vsock, start the guest."""
        boot_files.check(self.config)
        self.devices = {disk["id"] for disk in self.config.get("disks", [])}
        if "vsock" in self.config:
            try:
                self.vsock = SimulatedVsock(Path(self.config["vsock"]["socket"]), owner=self._owner)
            except OSError as error:
                raise boot_files.vsock_error(error) from error
        self.guest = self._make_guest(self)
        self._tasks.append(self._group.create_task(self.guest.run()))
        if self.vsock is not None:
            self._tasks.append(self._group.create_task(self.vsock.accept_forever(self.guest)))

    async def shutdown(self) -> None:
        """End the guest and remove the vsock."""
        await self._end(crashed=False)

    async def crash(self) -> None:
        """Vanish as a killed process does: connections are cut, socket files stay."""
        await self._end(crashed=True)

    async def _end(self, *, crashed: bool) -> None:
        if self.vsock is not None:
            self.vsock.close(crashed=crashed)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self.guest is not None:
            await self.guest.close()

    async def wait(self) -> Exit:
        """Return why the guest ended the machine."""
        return await asyncio.shield(self._exit)

    def end(self, reason: Exit) -> None:
        """End the machine from inside: power-off, reset, or a failure."""
        if not self._exit.done():
            self._exit.set_result(reason)

    async def pause(self) -> None:
        """Do nothing: a simulated guest has no processors that could stand still."""

    async def resume(self) -> None:
        """Do nothing, as `pause` did."""

    async def power_button(self) -> None:
        """Press the button: what happens is the guest's affair."""
        if self.guest is not None:
            self.guest.on_power_button()

    async def add_disk(self, disk: Json) -> int:
        """Plug in a disk."""
        boot_files.check_disk(disk)
        if disk["id"] in self.devices:
            raise MachineError("Error from device manager", f"Identifier {disk['id']} is not unique")
        if len(self.devices) >= _SLOTS:
            raise MachineError("Error from device manager", "No available PCI device slot")
        self.devices.add(disk["id"])
        return _FIRST_SLOT + len(self.devices)

    async def remove_device(self, device: str) -> None:
        """Let go of a device, unless the guest keeps what it has."""
        if self.guest is None or self.guest.ejects:
            self.devices.discard(device)

    def counters(self) -> dict[str, Any]:
        """Return counters of disks that were never used."""
        return {
            disk["id"]: {"read_bytes": 0, "write_bytes": 0, "read_ops": 0, "write_ops": 0}
            for disk in self.config.get("disks", [])
        }

    def write_console(self, text: str) -> None:
        """Write to the console's file, if there is one and somebody reads it."""
        console = self.config["console"]
        if console["mode"] != "File":
            return
        try:
            descriptor = os.open(console["file"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o600)
        except OSError:
            return  # a FIFO nobody reads: the guest goes on, as with a console that nobody drains
        try:
            os.write(descriptor, text.encode())
        except (BlockingIOError, BrokenPipeError):
            return  # nobody drains it, or whoever did has just died
        finally:
            os.close(descriptor)
