"""A node whose guests can be told to misbehave, and a neighbour that must not notice."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from cellmesh.api.hypervisor.v1 import event_pb2, vm_pb2, vm_service_pb2
from simulator import Hub
from support.hollow_images import hollow_container, hollow_guest
from support.hostile_guest import HostileGuest
from support.node import Node, node, short_directory
from support.witness import Witness, watching

NAME = "sandbox-live"
ALL_ATTACKS_BYTES = 48 << 20
"""What all attacks of a module together may leave behind in the hypervisor: nothing adds up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A VM with a container in it whose guest is about to misbehave."""

    vm: vm_pb2.Vm
    guest: HostileGuest
    agent_socket: Path
    """Where its guest dials the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """The node, and what is needed to attack it."""

    it: Node
    hub: Hub
    image: str
    neighbour: str

    @asynccontextmanager
    async def target(self) -> AsyncIterator[Target]:
        """Run a VM of its own inside, and delete it afterwards."""
        vm = await self.it.running()
        await self.it.start_container(vm.vm_id, self.image, name=NAME)
        directory = self.it.run_dir / "vm" / vm.vm_id.replace("-", "")[:12]
        guest = self.hub.process(directory).guest
        assert isinstance(guest, HostileGuest)
        try:
            yield Target(vm=vm, guest=guest, agent_socket=directory / "vsock.sock_1025")
        finally:
            guest.lies.clear()
            guest.wire = None
            request = vm_service_pb2.DeleteVmRequest(request_id=str(uuid.uuid4()), vm_id=vm.vm_id)
            await self.it.vms.DeleteVm(request)

    @asynccontextmanager
    async def witnessed(self) -> AsyncIterator[Witness]:
        """Fail afterwards if the neighbour was not well inside, or the hypervisor grew."""
        assert self.it.process is not None
        async with watching(self.it.process.pid, self.it.vms, self.neighbour) as witness:
            yield witness
        faults = witness.faults()
        assert not faults, faults

    async def misbehaviour(self, target: Target) -> list[event_pb2.AgentMisbehaved]:
        """Return what the node noted of the target."""
        events = await self.it.all_events(target.vm.vm_id)
        return [event.agent_misbehaved for event in events if event.HasField("agent_misbehaved")]


def memory(it: Node) -> int:
    """Return the resident bytes of a node's hypervisor, or of this process if it runs here."""
    pid = it.process.pid if it.process is not None else os.getpid()
    return int(psutil.Process(pid).memory_info().rss)


@asynccontextmanager
async def fighting(run: Callable[[Path, Path], AbstractAsyncContextManager[Node]] = node) -> AsyncIterator[Arena]:
    """Run a node on simulated VMs, one of them a good neighbour; with `node_here` it can be tampered with."""
    with short_directory() as directory:
        images = directory / "state" / "images"
        hollow_guest(images)
        image = hollow_container(images)
        async with Hub(directory / "hub", guest=HostileGuest) as hub, run(directory, hub.binary) as it:
            neighbour = await it.running()
            await it.start_container(neighbour.vm_id, image, name=NAME)
            before = memory(it)
            yield Arena(it=it, hub=hub, image=image, neighbour=neighbour.vm_id)
            grown = memory(it) - before
            assert grown < ALL_ATTACKS_BYTES, grown
