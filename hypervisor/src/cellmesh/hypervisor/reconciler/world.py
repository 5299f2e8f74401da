"""What a reconciler acts on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from cellmesh.hypervisor.domain.container import Container, ContainerStatus
from cellmesh.hypervisor.lifecycle.admission import Admission
from cellmesh.hypervisor.lifecycle.attempts import Attempts
from cellmesh.hypervisor.lifecycle.sessions import Sessions
from cellmesh.hypervisor.store import Store
from cellmesh.hypervisor.vmm import Handle, Vmm
from cellmesh.hypervisor.vmm.liveness import QUESTIONS
from cellmesh.image import ImageStore

_STARTS = 8


class Guests(Protocol):
    """The agents of VMs, as far as a reconciler asks them. Raises MeshError."""

    async def start_container(self, epoch: int, container: Container) -> ContainerStatus:
        """Start a generation of a container and return how it is then."""

    async def stop_container(self, epoch: int, container: Container) -> ContainerStatus:
        """Stop a container and return how it is then."""

    async def release_image(self, vm_id: str, epoch: int, serial: str) -> None:
        """Have the guest let go of an image's disk."""

    async def shutdown(self, vm_id: str, epoch: int, *, grace: timedelta) -> None:
        """Ask the guest to stop its containers and to power off."""

    async def info(self, vm_id: str, epoch: int, *, within: timedelta) -> object:
        """Return if the agent answers in time."""

    async def hang_up(self, vm_id: str) -> None:
        """Close the connection to a VM."""


class Sockets(Protocol):
    """The sockets agents dial."""

    async def open(self, vm_id: str) -> None:
        """Listen to a VM."""

    async def close(self, vm_id: str) -> None:
        """Listen to a VM no longer."""


class Edge(Protocol):
    """The edge, which by itself follows what is committed."""

    async def settled(self, vm_id: str) -> None:
        """Return once the edge leads a VM's routes as they are committed, or cannot say so soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long a reconciler waits."""

    boot_timeout: timedelta
    heartbeat_interval: timedelta
    # Each run of this length makes up for one restart: a VM that dies after every minute ends FAILED all the same.
    proven: timedelta = timedelta(minutes=10)
    room_poll: timedelta = timedelta(seconds=2)
    probe_timeout: timedelta = timedelta(seconds=3)
    # Between two questions to a silent guest.
    question_pause: timedelta = timedelta(seconds=1)

    @property
    def silence(self) -> float:
        """Return the seconds without a report after which a guest is asked whether it lives."""
        return 3 * self.heartbeat_interval.total_seconds()

    @property
    def answer_limit(self) -> float:
        """Return the seconds of usable time that a silent guest gets to answer, all questions together."""
        return QUESTIONS * min(self.probe_timeout.total_seconds(), self.silence)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything the reconcilers of all VMs share."""

    store: Store
    vmm: Vmm
    guests: Guests
    sockets: Sockets
    images: ImageStore
    sessions: Sessions
    attempts: Attempts
    admission: Admission
    edge: Edge
    timing: Timing
    failpoint: Callable[[str], None]
    # Starts are taken in turn: more at once would not be quicker, only slow down who asks for something else.
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_STARTS))
    # The VMM of each VM that has one; kept by its keeper, read by probes.
    handles: dict[str, Handle] = field(default_factory=dict)
    jitter: Callable[[], float] = random.random
