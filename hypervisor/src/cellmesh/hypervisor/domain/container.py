"""A container inside a VM: as it is wanted, and as its agent says it is."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cellmesh.hypervisor.domain.vm import VmId

MAX_CONTAINERS = 16
# The ports of a guest's vsock that join the host to containers: each slot has as many as generations are told apart.
_INGRESS_PORTS = 1 << 16


class ContainerState(enum.Enum):
    """Where a container is in its life; the names are the contract's."""

    PENDING = "PENDING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    BACKOFF = "BACKOFF"
    FAILED = "FAILED"


class Health(enum.Enum):
    """What a probe said last."""

    UNKNOWN = "UNKNOWN"
    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """What a container is made of.

    `document` is the contract's message, every default filled in. Only servicers and the guest client read it: what
    a process is called and what its environment holds is no business of the host.
    """

    image: str
    stop_grace: timedelta
    document: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStatus:
    """A container as its agent sees it: a claim, bounded and escaped where it came in."""

    state: ContainerState = ContainerState.PENDING
    health: Health = Health.UNKNOWN
    exit_code: int = 0
    restart_count: int = 0
    oom_kills: int = 0
    reason: str = ""
    message: str = ""
    start_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What an agent claims of the container `name` in one generation."""

    name: str
    generation: int
    status: ContainerStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container as stored. `epoch` is 0 until its generation was handed to an agent.

    `ingress_slot` is its number among the containers its VM has; that of a deleted one is given again.
    """

    vm_id: VmId
    name: str
    spec: ContainerSpec
    wanted: bool
    generation: int
    epoch: int
    ingress_slot: int
    status: ContainerStatus
    create_time: datetime
    update_time: datetime

    @property
    def needs_start(self) -> bool:
        """Tell whether an agent has yet to start this generation."""
        return self.wanted and self.status.state in {ContainerState.PENDING, ContainerState.STARTING}

    @property
    def needs_stop(self) -> bool:
        """Tell whether an agent has yet to stop it."""
        return not self.wanted and self.epoch > 0 and self.status.state not in _ENDED

    @property
    def is_over(self) -> bool:
        """Tell whether it is not wanted and nothing of it runs."""
        return not self.wanted and not self.needs_stop

    @property
    def ingress_port(self) -> int:
        """Return the port of the guest's vsock that leads to this generation, and to none before or after it."""
        return _INGRESS_PORTS * (1 + self.ingress_slot) + self.generation % _INGRESS_PORTS

    def next_generation(self) -> Container:
        """Return this container as it waits for its next start."""
        return replace(self, generation=self.generation + 1, epoch=0, status=ContainerStatus())


_ENDED = frozenset({ContainerState.STOPPED, ContainerState.FAILED})
