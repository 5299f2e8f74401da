"""The values this package takes and gives: plain, frozen, without grpc and without a database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One raw disk, told apart in the guest by its virtio serial."""

    path: Path
    serial: str
    """At most 20 letters, digits or dashes: virtio has no room for more."""
    readonly: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One boot of one VM: everything cloud-hypervisor is told about it."""

    vm_id: str
    epoch: int
    """Grows on every start of the VM."""
    vcpus: int
    memory_bytes: int
    kernel: Path
    initramfs: Path
    cmdline: str
    disks: tuple[Disk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """What identifies one running VMM across restarts of the hypervisor; written to disk before the VMM is started."""

    vm_id: str
    epoch: int
    pid: int
    """0 while the start is only intended."""
    start_ticks: int
    """Field 22 of /proc/<pid>/stat: with the pid and the boot id it names one process for ever."""
    host_boot_id: str
    uid: int
    bridge_pid: int
    bridge_start_ticks: int
    directory: Path
    created: datetime
    """Wall time, UTC; for people, never compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The VM's own process is alive, answers, and its guest runs."""

    handle: Handle


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """The VM certainly has no process: `never_started`, `exited`, `rebooted` (the host) or `pid_reused`."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubtful:
    """Something is there that must not be killed on a guess.

    Reasons: `handle_unreadable`, `not_ours`, `several`, `unresponsive`, `not_booted`.
    """

    reason: str
    message: str
    handle: Handle | None = None
    """Set when the process is certainly this VM's own (`not_booted`, `unresponsive`), so that it may be killed."""


Adoption = Running | Gone | Doubtful


class ExitReason(StrEnum):
    """Why a VMM ended, as far as its own events tell."""

    GUEST_SHUTDOWN = "guest_shutdown"
    STOPPED = "stopped"
    PANIC = "panic"
    KILLED = "killed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a VMM ended."""

    reason: ExitReason
    code: int | None
    """Exit status; None when it died by a signal or was not our child."""
    signal: int | None


class VmState(StrEnum):
    """States that vm.info reports, and `NONE` for a VMM that holds no VM."""

    NONE = "None"
    CREATED = "Created"
    RUNNING = "Running"
    SHUTDOWN = "Shutdown"
    PAUSED = "Paused"
    BREAKPOINT = "BreakPoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a VMM says about itself now."""

    version: str
    state: VmState
    reboots: int
    """How often the guest has reset itself in this VMM; each is a new boot of the guest."""
    panicked: bool


class Rung(IntEnum):
    """The rungs of the stop ladder, gentlest first. The agent's own Shutdown comes before them, by the caller."""

    POWER_BUTTON = 1
    VM_SHUTDOWN = 2
    VMM_SHUTDOWN = 3
    SIGTERM = 4
    SIGKILL = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """How long each rung may take before the next is tried, in seconds that the VMM could use."""

    power_button: float = 10.0
    vm_shutdown: float = 5.0
    vmm_shutdown: float = 3.0
    sigterm: float = 2.0
    sigkill: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """A process or directory of no known VM. It is reported, never killed."""

    kind: str
    """`vmm`, `bridge`, `run_directory`, `state_directory` or `unreadable`."""
    name: str
    """The VM's (short) id, or the name that could not be read, escaped."""
    pid: int | None
    path: Path
