"""What stands behind the REST API: the one thing in which the doubles differ."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, auto
from typing import Any, Protocol

from chv53.config import Json


class MachineError(Exception):
    """The machine could not do it; causes from the outside in, as the API shows them.

    `partial` says that devices exist already, so that the machine must be shut down before another boot.
    """

    def __init__(self, *causes: str, partial: bool = False) -> None:
        super().__init__(": ".join(causes))
        self.causes = causes
        self.partial = partial


class Exit(Enum):
    """Why a machine ended on its own."""

    POWER_OFF = auto()
    RESET = auto()
    FAILED = auto()


class Machine(Protocol):
    """A machine from boot to shutdown; every method may raise MachineError."""

    @property
    def devices(self) -> Collection[str]:
        """The ids of the disks that it has: one whose removal was asked for is among them until the guest ejects it."""

    async def boot(self) -> None:
        """Start it; returns when its processors run."""

    async def shutdown(self) -> None:
        """Stop it at once and take away what it made."""

    async def wait(self) -> Exit:
        """Return why it ended on its own."""

    async def pause(self) -> None:
        """Stop its processors."""

    async def resume(self) -> None:
        """Let its processors run."""

    async def power_button(self) -> None:
        """Press the ACPI power button."""

    async def add_disk(self, disk: Json) -> int:
        """Plug in a disk, whose `id` is set, and return its PCI slot."""

    async def remove_device(self, device: str) -> None:
        """Ask the guest to let go of a device."""

    def counters(self) -> dict[str, Any]:
        """Return what `vm.counters` shows."""
