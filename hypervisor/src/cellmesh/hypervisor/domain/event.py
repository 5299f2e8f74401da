"""What happened: the payloads of events, and the event as stored."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cellmesh.hypervisor.domain.container import ContainerState, Health
from cellmesh.hypervisor.domain.route import RouteTarget
from cellmesh.hypervisor.domain.vm import Vm, VmState


@dataclass(frozen=True, slots=True, kw_only=True)
class VmStateChanged:
    """A VM changed state."""

    origin: VmState | None
    target: VmState
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStateChanged:
    """A container changed state."""

    origin: ContainerState | None
    target: ContainerState
    reason: str
    message: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerOomKilled:
    """The kernel of a guest killed a process for memory; `oom_kills` so far in this generation."""

    oom_kills: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerHealthChanged:
    """A container's probe changed its mind."""

    origin: Health
    target: Health


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerDeleted:
    """A container was deleted, with what it kept in its persistent paths or without."""

    persistent_paths: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentMisbehaved:
    """An agent broke the contract; `count` messages were ignored for this since the last event of the kind."""

    kind: str
    message: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Anomaly:
    """The node found or lost something it cannot account for."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSwitched:
    """A route leads to another container or generation."""

    prefix: str
    origin: RouteTarget
    target: RouteTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRefused:
    """The edge did not take a switch to `target`; the route leads where it led before. `message` is escaped."""

    prefix: str
    target: RouteTarget
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDrainChanged:
    """The node's scheduling changed."""

    draining: bool


Payload = (
    VmStateChanged
    | ContainerStateChanged
    | ContainerOomKilled
    | ContainerHealthChanged
    | ContainerDeleted
    | AgentMisbehaved
    | Anomaly
    | NodeDrainChanged
    | RouteSwitched
    | RouteRefused
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What an event is about; all empty for an event of the node."""

    vm_id: str = ""
    container_name: str = ""
    epoch: int = 0
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One committed entry of the log: an event, a new revision of a VM, or both."""

    sequence: int
    time: datetime
    subject: Subject
    trace_id: str
    payload: Payload | None
    vm: Vm | None
