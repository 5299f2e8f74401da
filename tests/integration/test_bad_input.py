"""Bad input to every RPC of a real hypervisor: refused by name, with nothing changed and no file made."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor import MethodDescriptor

from cellmesh.api.guest.v1 import agent_service_pb2
from cellmesh.api.hypervisor.v1 import (
    container_service_pb2,
    event_service_pb2,
    node_service_pb2,
    route_service_pb2,
    vm_pb2,
    vm_service_pb2,
)
from simulator import Hub
from support.bad_input import fault, most_bytes
from support.hollow_images import hollow_container, hollow_guest
from support.mutants import Mutant, mutants
from support.node import SECONDS, Node, node, short_directory
from support.raw_calls import call, channel, methods
from support.samples import Known

NAME = "sandbox-live"
HOST = tuple(
    methods(
        vm_service_pb2.DESCRIPTOR,
        container_service_pb2.DESCRIPTOR,
        event_service_pb2.DESCRIPTOR,
        route_service_pb2.DESCRIPTOR,
        node_service_pb2.DESCRIPTOR,
    )
)
AGENT = tuple(methods(agent_service_pb2.DESCRIPTOR))

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """A node with an image for containers."""

    it: Node
    hub: Hub
    directory: Path
    image: str

    async def cell(self) -> vm_pb2.Vm:
        """Return a VM that runs, with a container in it."""
        vm = await self.it.running()
        await self.it.start_container(vm.vm_id, self.image, name=NAME)
        # The last of its files: what its guest says while it boots is written down by another process.
        async with asyncio.timeout(SECONDS):
            while not (self._vm_directory(vm) / "console.log").exists():  # noqa: ASYNC110  # a file system tells nobody
                await asyncio.sleep(0.01)
        return vm

    def agent_socket(self, vm: vm_pb2.Vm) -> Path:
        """Return the socket the VM's guest dials."""
        return self._vm_directory(vm) / "vsock.sock_1025"

    def known(self, vm: vm_pb2.Vm) -> Known:
        """Return what makes a valid request one that is granted."""
        guest = self.hub.process(self._vm_directory(vm)).guest
        return {
            "vm_id": lambda: vm.vm_id,
            "request_id": lambda: str(uuid.uuid4()),
            "user_id": lambda: str(uuid.uuid4()),
            "exec_id": lambda: str(uuid.uuid4()),
            "boot_id": lambda: guest.boot_id,
            "epoch": lambda: vm.epoch,
            "container_name": lambda: NAME,
            "prefix": lambda: "/",
            "generation": lambda: 0,
            "expected_revision": lambda: 0,
            "image": lambda: self.image,
            "guest_image": lambda: vm.spec.guest_image,
            "page_token": lambda: "",
            "resume_token": lambda: b"",
            "follow": lambda: False,
            "protocol_versions": lambda: 1,
        }

    def files(self) -> frozenset[str]:
        """Return the path of everything the node has on disk."""
        roots = (self.it.run_dir, self.it.state_dir)
        # os.walk, unlike rglob, bears that a directory goes while it is looked at.
        return frozenset(
            str(Path(directory) / name)
            for root in roots
            for directory, directories, files in os.walk(root)
            for name in (*directories, *files)
        )

    async def files_at_rest(self) -> frozenset[str]:
        """Return them once there is nothing among them by which another is being replaced."""
        async with asyncio.timeout(SECONDS):
            while True:
                found = self.files()
                if not any(path.endswith(".new") for path in found):
                    return found
                await asyncio.sleep(0.01)

    async def until_files(self, wanted: frozenset[str]) -> None:
        """Wait until exactly these files are there: what a console's log is written through comes and goes."""
        try:
            async with asyncio.timeout(SECONDS):
                while self.files() != wanted:  # noqa: ASYNC110  # a file system tells nobody
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"files came or went: {sorted(self.files() ^ wanted)}") from None

    def _vm_directory(self, vm: vm_pb2.Vm) -> Path:
        return self.it.run_dir / "vm" / vm.vm_id.replace("-", "")[:12]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cells() -> AsyncIterator[Cells]:
    """Run a node on simulated VMs."""
    with short_directory() as directory:
        images = directory / "state" / "images"
        hollow_guest(images)
        async with Hub(directory / "hub") as hub, node(directory, hub.binary) as it:
            yield Cells(it=it, hub=hub, directory=directory, image=hollow_container(images))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def quiet(cells: Cells) -> vm_pb2.Vm:
    """Give a cell that only refused requests are about."""
    return await cells.cell()


def path_of(method: MethodDescriptor) -> str:
    """Name a test after its RPC."""
    return f"{method.containing_service.name}/{method.name}"


def _is_bad(mutant: Mutant) -> bool:
    return bool(mutant.broken or mutant.undecodable)


async def _faults(to: grpc.aio.Channel, method: MethodDescriptor, given: list[Mutant]) -> list[str]:
    most = most_bytes(method)
    found = [fault(mutant, await call(to, method, mutant.data, seconds=SECONDS), most=most) for mutant in given]
    return [each for each in found if each is not None]


@pytest.mark.parametrize("method", HOST, ids=path_of)
async def test_bad_input_is_refused_without_a_trace(cells: Cells, quiet: vm_pb2.Vm, method: MethodDescriptor) -> None:
    """INVALID_ARGUMENT with the field's name; VM, containers and files are as they were."""
    before = await cells.files_at_rest()
    listing = container_service_pb2.ListContainersRequest(vm_id=quiet.vm_id)
    state = await cells.it.get(quiet.vm_id), await cells.it.containers.ListContainers(listing)
    bad = [mutant for mutant in mutants(method.input_type, cells.known(quiet)) if _is_bad(mutant)]
    async with channel(cells.it.run_dir / "operator.sock") as to:
        assert await _faults(to, method, bad) == []
    assert bad
    assert state == (await cells.it.get(quiet.vm_id), await cells.it.containers.ListContainers(listing))
    await cells.until_files(before)


@pytest.mark.parametrize("method", HOST, ids=path_of)
async def test_odd_input_is_granted_or_refused_for_a_reason(cells: Cells, method: MethodDescriptor) -> None:
    """What obeys the rules is answered, or refused with a reason of the contract; never INTERNAL, never UNKNOWN."""
    vm = await cells.cell()
    odd = [mutant for mutant in mutants(method.input_type, cells.known(vm)) if not _is_bad(mutant)]
    async with channel(cells.it.run_dir / "operator.sock") as to:
        assert await _faults(to, method, odd) == []
        again = node_service_pb2.GetNodeRequest().SerializeToString()
        assert (await call(to, HOST[-2], again)).code == "OK"


@pytest.mark.parametrize("method", AGENT, ids=path_of)
async def test_bad_input_of_a_guest_is_refused(cells: Cells, method: MethodDescriptor) -> None:
    """The agent of a cell is held to the same; its VM goes on, and no file is made."""
    vm = await cells.cell()
    before = await cells.files_at_rest()
    given = list(mutants(method.input_type, cells.known(vm)))
    async with channel(cells.agent_socket(vm)) as to:
        assert await _faults(to, method, given) == []
    assert any(map(_is_bad, given))
    now = await cells.it.get(vm.vm_id)
    assert (now.state, now.epoch) == (vm_pb2.VM_STATE_RUNNING, vm.epoch)
    await cells.until_files(before)


async def test_a_file_that_was_made_is_noticed(cells: Cells) -> None:
    """The control of the tests above: they look everywhere below the node's directories."""
    before = await cells.files_at_rest()
    stray = cells.it.run_dir / "vm" / "stray"
    stray.touch()
    assert cells.files() - before == {str(stray)}
    stray.unlink()
    await cells.until_files(before)
