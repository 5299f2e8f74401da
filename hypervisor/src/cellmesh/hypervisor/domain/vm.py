"""A VM: what its owner wants, where it is, and the one table of how it gets from state to state."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NewType

from cellmesh.hypervisor.domain.errors import ImpossibleTransition

VmId = NewType("VmId", str)
UserId = NewType("UserId", str)


class VmState(enum.Enum):
    """Where a VM is in its life; the names are the contract's."""

    PENDING = "PENDING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    BACKOFF = "BACKOFF"
    FAILED = "FAILED"
    QUARANTINED = "QUARANTINED"
    DELETING = "DELETING"
    DELETED = "DELETED"


class DesiredState(enum.Enum):
    """What its owner wants of a VM."""

    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    DELETED = "DELETED"


class RestartMode(enum.Enum):
    """When something that died is started again. A VM has no exit code, so for a VM ON_FAILURE is ALWAYS."""

    NEVER = "NEVER"
    ON_FAILURE = "ON_FAILURE"
    ALWAYS = "ALWAYS"


class ColdStart(enum.Enum):
    """What a request from the edge does to a stopped VM."""

    ON_REQUEST = "ON_REQUEST"
    NEVER = "NEVER"


class Reason(enum.StrEnum):
    """Why a VM is where it is."""

    NONE = ""
    HELLO_TIMEOUT = "HELLO_TIMEOUT"
    VMM_START_FAILED = "VMM_START_FAILED"
    BOOT_FAILED = "BOOT_FAILED"
    VMM_EXITED = "VMM_EXITED"
    VMM_HUNG = "VMM_HUNG"
    GUEST_REBOOTED = "GUEST_REBOOTED"
    GUEST_SILENT = "GUEST_SILENT"
    ADOPTION_DOUBTFUL = "ADOPTION_DOUBTFUL"
    NODE_FULL = "NODE_FULL"
    RECYCLED = "RECYCLED"
    IMAGE_MISSING = "IMAGE_MISSING"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One way a VM may go."""

    origin: VmState
    target: VmState
    why: str


_S = VmState
# docs/vm-states.md repeats this table row by row; a test compares the two.
TRANSITIONS: tuple[Transition, ...] = tuple(
    Transition(origin=origin, target=target, why=why)
    for origin, target, why in (
        (_S.PENDING, _S.STARTING, "there is room for it, and its next epoch is committed"),
        (_S.PENDING, _S.STOPPED, "stop was wished before it started"),
        (_S.PENDING, _S.DELETING, "delete was wished"),
        (_S.STARTING, _S.RUNNING, "its agent said Hello"),
        (_S.STARTING, _S.PENDING, "the hypervisor died while starting it, which is no fault of the VM's"),
        (_S.STARTING, _S.STOPPING, "stop or recycle was wished"),
        (_S.STARTING, _S.BACKOFF, "it did not come up, and its policy allows another try"),
        (_S.STARTING, _S.FAILED, "it did not come up, and its policy allows no other try"),
        (_S.STARTING, _S.QUARANTINED, "after a restart of the hypervisor it was unclear what runs"),
        (_S.STARTING, _S.DELETING, "delete was wished"),
        (_S.RUNNING, _S.STOPPING, "stop or recycle was wished"),
        (_S.RUNNING, _S.BACKOFF, "it died, and its policy allows another try"),
        (_S.RUNNING, _S.FAILED, "it died, and its policy allows no other try"),
        (_S.RUNNING, _S.QUARANTINED, "after a restart of the hypervisor it was unclear what runs"),
        (_S.RUNNING, _S.DELETING, "delete was wished"),
        (_S.STOPPING, _S.STOPPED, "nothing of it runs any more"),
        (_S.STOPPING, _S.PENDING, "nothing of it runs any more, and it is wanted again"),
        (_S.STOPPING, _S.QUARANTINED, "it was unclear what still runs"),
        (_S.STOPPING, _S.DELETING, "delete was wished"),
        (_S.STOPPED, _S.PENDING, "start or recycle was wished"),
        (_S.STOPPED, _S.DELETING, "delete was wished"),
        (_S.BACKOFF, _S.STARTING, "its wait is over, and its next epoch is committed"),
        (_S.BACKOFF, _S.PENDING, "start or recycle was wished, so it waits no longer"),
        (_S.BACKOFF, _S.STOPPED, "stop was wished"),
        (_S.BACKOFF, _S.DELETING, "delete was wished"),
        (_S.FAILED, _S.PENDING, "start or recycle was wished"),
        (_S.FAILED, _S.STOPPED, "stop was wished"),
        (_S.FAILED, _S.DELETING, "delete was wished"),
        (_S.QUARANTINED, _S.DELETING, "delete with force was wished"),
        (_S.DELETING, _S.DELETED, "nothing of it is left"),
    )
)
_ALLOWED = frozenset((row.origin, row.target) for row in TRANSITIONS)

# In these states a VMM process may exist.
LIVE_STATES = frozenset({_S.STARTING, _S.RUNNING, _S.STOPPING, _S.DELETING, _S.QUARANTINED})
# In these states the VM's memory is promised to it.
COMMITTED_STATES = frozenset({_S.STARTING, _S.RUNNING, _S.STOPPING, _S.QUARANTINED})


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How often, and how soon, something that died is started again."""

    mode: RestartMode = RestartMode.ON_FAILURE
    max_restarts: int = 5
    initial_backoff: timedelta = timedelta(seconds=1)
    max_backoff: timedelta = timedelta(seconds=30)

    def delay(self, tries: int, fraction: float) -> timedelta:
        """Return the wait before try number `tries` (1 is the first); `fraction` in [0, 1) is the jitter drawn."""
        # The exponent is capped so that a thousand tries do not make an integer of a thousand bits.
        longest = min(self.max_backoff, self.initial_backoff * (1 << min(tries - 1, 24)))
        return longest * (0.5 + 0.5 * fraction)

    def allows(self, tries: int) -> bool:
        """Tell whether try number `tries` in a row may be made."""
        return self.mode is not RestartMode.NEVER and tries <= self.max_restarts


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSpec:
    """What a VM is made of, every default filled in."""

    guest_image: str
    vcpus: int = 1
    memory_bytes: int = 512 << 20
    data_disk_bytes: int = 2 << 30
    restart_policy: RestartPolicy = RestartPolicy()
    cold_start: ColdStart = ColdStart.ON_REQUEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """One user's cell, as stored."""

    vm_id: VmId
    user_id: UserId
    spec: VmSpec
    desired: DesiredState
    state: VmState
    create_time: datetime
    update_time: datetime
    epoch: int = 0
    reason: Reason = Reason.NONE
    message: str = ""
    revision: int = 1
    restart_count: int = 0
    # Recycles wished so far; the two below say which of them the running epoch was started for, and which are done.
    recycle_wished: int = 0
    recycle_started: int = 0
    recycle_done: int = 0
    force_delete: bool = False
    running_time: datetime | None = None
    next_try_time: datetime | None = None
    vmm_pid: int = 0

    @property
    def recycle_pending(self) -> bool:
        """Tell whether a recycle was wished that the present epoch was not started for."""
        return self.recycle_wished > self.recycle_started

    @property
    def discards_layers(self) -> bool:
        """Tell whether the present epoch is the one that throws the writable layers away."""
        return self.recycle_started > self.recycle_done

    def move(self, target: VmState, *, reason: Reason = Reason.NONE, message: str = "") -> Vm:
        """Return this VM in the state `target`; ImpossibleTransition if the table has no such row."""
        if (self.state, target) not in _ALLOWED:
            raise ImpossibleTransition(vm_id=self.vm_id, origin=self.state.name, target=target.name)
        return replace(self, state=target, reason=reason, message=message)
