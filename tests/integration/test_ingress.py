"""The way from an ingress socket to a container, through a real hypervisor and its bridges, over simulated VMs."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cellmesh.api.common.v1 import container_pb2 as common_container_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2, vm_pb2, vm_service_pb2
from cellmesh.hypervisor.vmm import handle_file, process
from cellmesh.hypervisor.vmm.layout import short
from cellmesh.hypervisor.vmm.model import Handle
from simulator.hub import Hub
from support.hollow_images import hollow_container, hollow_guest
from support.ingress import Connection, ask, until_answered, until_refused
from support.node import Node, node, short_directory

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[Hub]:
    """Give a hub of simulated VMs, in a directory that also holds hollow images for a node."""
    with short_directory() as directory:
        hollow_guest(directory / "state" / "images")
        async with Hub(directory / "hub") as it:
            yield it


@pytest_asyncio.fixture
async def it(hub: Hub) -> AsyncIterator[Node]:
    """Give a node whose hypervisor serves."""
    async with node(hub.directory.parent, hub.binary) as running:
        yield running


@pytest.fixture
def image(hub: Hub) -> str:
    """Give a container image."""
    return hollow_container(hub.directory.parent / "state" / "images")


def directory_of(it: Node, vm_id: str) -> Path:
    """Return where the ingress sockets of a VM lie."""
    return it.run_dir / "in" / short(vm_id)


def handle_of(it: Node, vm_id: str) -> Handle:
    """Return what is on disk of a VM's processes."""
    handle = handle_file.read(it.state_dir / "vm" / vm_id / "handle.json")
    assert handle is not None
    return handle


async def kill_bridge(it: Node, vm_id: str) -> Handle:
    """Kill a VM's bridge and return the handle that named it."""
    handle = handle_of(it, vm_id)
    process.send_signal(handle.bridge_pid, handle.bridge_start_ticks, signal.SIGKILL)
    assert await process.wait(handle.bridge_pid, handle.bridge_start_ticks, seconds=30)
    return handle


async def restart(it: Node, vm_id: str, name: str = "app") -> None:
    """Restart a container."""
    await it.containers.RestartContainer(
        container_service_pb2.RestartContainerRequest(request_id=str(uuid.uuid4()), vm_id=vm_id, container_name=name)
    )


async def stop(it: Node, vm_id: str, name: str = "app") -> None:
    """Stop a container."""
    await it.containers.StopContainer(
        container_service_pb2.StopContainerRequest(request_id=str(uuid.uuid4()), vm_id=vm_id, container_name=name)
    )


async def test_each_generation_is_reached_by_a_socket_of_its_own(it: Node, image: str) -> None:
    """A container that runs answers on the socket of its generation, and on none before or after its time."""
    vm = await it.running()
    await it.start_container(vm.vm_id, image)
    directory = directory_of(it, vm.vm_id)
    first, second = directory / "app.1.1", directory / "app.1.2"
    connection = Connection(first)
    said = await connection.ask(headers={"x-mark": "7"})
    assert (said["vm_id"], said["epoch"], said["container"], said["generation"]) == (vm.vm_id, 1, "app", 1)
    assert said["headers"]["x-mark"] == "7"
    await restart(it, vm.vm_id)
    assert (await ask(second))["generation"] == 2
    await until_refused(first)
    with pytest.raises(OSError, match=r"closed|reset|Broken|without response|refused|No such"):
        await connection.ask()
    connection.close()
    await stop(it, vm.vm_id)
    await until_refused(second)
    await it.start_container(vm.vm_id, image, "a" * 32)
    await it.start_container(vm.vm_id, image)
    assert sorted(path.name for path in directory.iterdir()) == ["a" * 32 + ".1.1", "app.1.3"]
    assert {(await ask(path))["container"] for path in directory.iterdir()} == {"app", "a" * 32}


async def test_a_container_may_be_called_agent(it: Node, image: str) -> None:
    """The bridge's own socket to the agent is told apart from those of a container of that name."""
    vm = await it.running()
    await it.start_container(vm.vm_id, image, "agent")
    assert (await ask(directory_of(it, vm.vm_id) / "agent.1.1"))["container"] == "agent"
    await restart(it, vm.vm_id, "agent")
    assert (await ask(directory_of(it, vm.vm_id) / "agent.1.2"))["generation"] == 2
    await until_refused(directory_of(it, vm.vm_id) / "agent.1.1")


async def test_a_container_that_comes_back_by_itself_keeps_its_socket(it: Node, hub: Hub, image: str) -> None:
    """A process that ends and is restarted by its policy is the same generation, on the same socket."""
    vm = await it.running()
    policy = common_container_pb2.RestartPolicy(mode=common_container_pb2.RESTART_MODE_ALWAYS)
    policy.initial_backoff.FromMilliseconds(10)
    await it.start_container(vm.vm_id, image, restart_policy=policy)
    path = directory_of(it, vm.vm_id) / "app.1.1"
    before = path.stat().st_ino
    hub.process(it.run_dir / "vm" / short(vm.vm_id)).guest.containers["app"].end(1)
    assert (await until_answered(path))["generation"] == 1
    assert path.stat().st_ino == before


async def test_a_vm_that_stops_takes_its_sockets_with_it(it: Node, image: str) -> None:
    """A stopped VM has no ingress socket; one that starts again has them in its next epoch."""
    vm = await it.running()
    await it.start_container(vm.vm_id, image)
    wish = {"request_id": str(uuid.uuid4()), "vm_id": vm.vm_id}
    await it.vms.StopVm(vm_service_pb2.StopVmRequest(**wish))
    await it.until(vm.vm_id, vm_pb2.VM_STATE_STOPPED)
    assert not directory_of(it, vm.vm_id).exists()
    wish = {"request_id": str(uuid.uuid4()), "vm_id": vm.vm_id}
    await it.vms.StartVm(vm_service_pb2.StartVmRequest(**wish))
    said = await until_answered(directory_of(it, vm.vm_id) / "app.2.2")
    assert (said["epoch"], said["generation"]) == (2, 2)


async def test_a_killed_bridge_comes_back_with_its_sockets(it: Node, image: str) -> None:
    """A bridge that dies costs the connections of its own VM; it is replaced with all it had."""
    vms = [await it.running() for _ in range(2)]
    for vm in vms:
        for name in ("app", "other"):
            await it.start_container(vm.vm_id, image, name)
    paths = [directory_of(it, vm.vm_id) / "app.1.1" for vm in vms]
    hurt, unhurt = (Connection(path) for path in paths)
    await hurt.ask()
    await unhurt.ask()
    killed = await kill_bridge(it, vms[0].vm_id)
    with pytest.raises(OSError, match=r"closed|reset|Broken|without response"):
        await hurt.ask()
    assert (await until_answered(paths[0]))["vm_id"] == vms[0].vm_id
    assert (await until_answered(paths[0].with_name("other.1.1")))["container"] == "other"
    assert (await unhurt.ask())["vm_id"] == vms[1].vm_id
    assert handle_of(it, vms[0].vm_id).bridge_pid not in (0, killed.bridge_pid)
    await restart(it, vms[0].vm_id)
    assert (await ask(paths[0].with_name("app.1.2")))["generation"] == 2
    for connection in (hurt, unhurt):
        connection.close()


async def test_streams_outlive_the_hypervisor(it: Node, image: str) -> None:
    """A killed hypervisor leaves open connections and sockets as they are, and the next one goes on with them."""
    vm = await it.running()
    await it.start_container(vm.vm_id, image)
    path = directory_of(it, vm.vm_id) / "app.1.1"
    connection = Connection(path)
    await connection.ask()
    inode = path.stat().st_ino
    await it.stop(signal.SIGKILL)
    await connection.ask()
    assert (await ask(path))["generation"] == 1
    await it.start()
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING)
    await connection.ask()
    assert path.stat().st_ino == inode
    await restart(it, vm.vm_id)
    assert (await ask(path.with_name("app.1.2")))["generation"] == 2
    await until_refused(path)
    connection.close()


async def test_a_bridge_that_died_without_its_hypervisor_is_replaced(it: Node, image: str) -> None:
    """Adoption gives a VM a bridge with the sockets of the containers that run."""
    vm = await it.running()
    await it.start_container(vm.vm_id, image)
    await it.stop(signal.SIGKILL)
    await kill_bridge(it, vm.vm_id)
    await it.start()
    assert (await until_answered(directory_of(it, vm.vm_id) / "app.1.1"))["vm_id"] == vm.vm_id


@pytest.mark.skipif(os.getuid() != 0, reason="uids of their own need root")
async def test_only_the_edge_reaches_a_container_and_nothing_but_containers(it: Node, image: str) -> None:
    """The edge's uid connects to ingress sockets alone; another VM's uid, and the VM's own, connect to nothing."""
    vm, other = await it.running(), await it.running()
    await it.start_container(vm.vm_id, image)
    run = it.run_dir / "vm" / short(vm.vm_id)
    ingress = directory_of(it, vm.vm_id) / "app.1.1"
    private = [run / name for name in ("api.sock", "vsock.sock", "vsock.sock_1025", "bridge.sock", "in/agent.1")]
    private.append(it.run_dir / "operator.sock")
    assert all(path.is_socket() for path in (ingress, *private))
    edge = 599_999
    assert await denied(edge, [ingress, *private]) == [False] + [True] * len(private)
    for vm_id in (vm.vm_id, other.vm_id):
        assert await denied(handle_of(it, vm_id).uid, [ingress]) == [True]
    for directory in (ingress.parent, ingress.parent.parent):
        found = directory.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (0, edge, 0o710)
    assert (ingress.stat().st_gid, ingress.stat().st_mode & 0o777) == (edge, 0o660)


async def denied(uid: int, paths: list[Path]) -> list[bool]:
    """Tell of each socket whether a process of that uid is refused by the kernel."""
    program = (
        "import socket, sys\n"
        "for path in sys.argv[1:]:\n"
        "    try: socket.socket(socket.AF_UNIX).connect(path); print('connected')\n"
        "    except PermissionError: print('denied')\n"
    )
    setpriv = process.tool("setpriv")
    assert setpriv is not None
    asked = await asyncio.create_subprocess_exec(
        *(setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups"),
        *("/usr/bin/python3", "-c", program, *map(str, paths)),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asked.communicate()
    return [word == b"denied" for word in said.split()]
