"""The audit log of a real hypervisor over simulated VMs: an entry for each change, no secret, and all signed."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import closing

import grpc
import pytest
import pytest_asyncio

from cellmesh.api.audit.v1 import audit_service_pb2
from cellmesh.api.audit.v1.audit_service_pb2_grpc import AuditServiceStub
from cellmesh.api.common.v1 import container_pb2 as common_container_pb2
from cellmesh.api.common.v1 import exec_pb2
from cellmesh.api.hypervisor.v1 import (
    container_service_pb2,
    node_service_pb2,
    route_pb2,
    route_service_pb2,
    route_service_pb2_grpc,
    vm_pb2,
    vm_service_pb2,
)
from cellmesh.mesh.errors import MeshError
from simulator.hub import Hub
from support.hollow_images import hollow_container, hollow_guest
from support.node import SECONDS, Node, node, short_directory, wish

pytestmark = pytest.mark.asyncio
SECRET = "hunter2-" + "b1946ac92492d2347c6235b4d2611184"


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


async def entries(it: Node) -> list[audit_service_pb2.AuditEntry]:
    """Return all entries, oldest first."""
    answer = await AuditServiceStub(it.channel).ListAudit(audit_service_pb2.ListAuditRequest())
    return list(answer.entries)[::-1]


async def verdict(it: Node) -> audit_service_pb2.VerifyAuditResponse:
    """Return what a check says."""
    return await AuditServiceStub(it.channel).VerifyAudit(audit_service_pb2.VerifyAuditRequest())


async def exercise(it: Node, image: str) -> str:
    """Change all that can be changed, with a secret wherever a request has room for text; return the VM's id."""
    vm = await it.running()
    spec = common_container_pb2.ContainerSpec(
        image=image,
        argv=["serve", SECRET],
        environment=[common_container_pb2.EnvironmentVariable(name="PASSWORD", value=SECRET)],
        working_dir=f"/{SECRET}",
    )
    for name in ("sandbox-live", "sandbox-dev", "search"):
        start = container_service_pb2.StartContainerRequest(container_name=name, spec=spec, **wish(vm.vm_id))
        await it.containers.StartContainer(start)
    # The same again is no change.
    await it.containers.StartContainer(start)
    opened = exec_pb2.ExecOpen(
        vm_id=vm.vm_id,
        container_name="search",
        exec_id=str(uuid.uuid4()),
        argv=["login", SECRET],
        environment=[common_container_pb2.EnvironmentVariable(name="TOKEN", value=SECRET)],
    )
    command = it.containers.Exec(iter_of(container_service_pb2.ExecRequest(input=exec_pb2.ExecInput(open=opened))))
    try:
        await anext(aiter(command))
    except MeshError:
        pass
    finally:
        command.cancel()  # type: ignore[attr-defined]  # mesh's streams can be
    named = {"container_name": "search"}
    await it.containers.RestartContainer(container_service_pb2.RestartContainerRequest(**wish(vm.vm_id), **named))
    await it.containers.StopContainer(container_service_pb2.StopContainerRequest(**wish(vm.vm_id), **named))
    await it.containers.DeleteContainer(container_service_pb2.DeleteContainerRequest(**wish(vm.vm_id), **named))
    routes = route_service_pb2_grpc.RouteServiceStub(it.channel)
    target = route_pb2.RouteTarget(container_name="sandbox-dev")
    # There is no Envoy; the switch is stored all the same.
    with pytest.raises(MeshError, check=lambda error: error.reason == "EDGE_UNREACHABLE"):
        await routes.SwitchRoute(route_service_pb2.SwitchRouteRequest(prefix="/", target=target, **wish(vm.vm_id)))
    await it.node.DrainNode(node_service_pb2.DrainNodeRequest(request_id=str(uuid.uuid4()), draining=True))
    await it.node.DrainNode(node_service_pb2.DrainNodeRequest(request_id=str(uuid.uuid4()), draining=False))
    await it.stop_vm(vm.vm_id)
    await it.vms.StartVm(vm_service_pb2.StartVmRequest(**wish(vm.vm_id)))
    await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING)
    await it.vms.RecycleVm(vm_service_pb2.RecycleVmRequest(**wish(vm.vm_id)))
    await it.vms.DeleteVm(vm_service_pb2.DeleteVmRequest(force=True, **wish(vm.vm_id)))
    await it.until_gone(vm.vm_id)
    with pytest.raises(MeshError):
        await it.vms.StopVm(vm_service_pb2.StopVmRequest(**wish(vm.vm_id)))
    return vm.vm_id


async def iter_of(*requests: container_service_pb2.ExecRequest) -> AsyncIterator[container_service_pb2.ExecRequest]:
    """Send requests, and then nothing."""
    for request in requests:
        yield request
    await asyncio.Event().wait()


async def test_each_change_has_its_entry_and_none_has_a_secret(it: Node, hub: Hub) -> None:
    """Every RPC that changes something is in the log once, with who, what and which; what a request says is not."""
    image = hollow_container(hub.directory.parent / "state" / "images")
    vm_id = await exercise(it, image)
    found = await entries(it)
    assert [entry.action for entry in found] == [
        "vm.create",
        *["container.start"] * 3,
        "container.exec",
        "container.restart",
        "container.stop",
        "container.stop",
        "container.delete",
        "route.switch",
        "node.drain",
        "node.drain",
        "vm.stop",
        "vm.start",
        "vm.recycle",
        "vm.delete",
    ]
    assert {entry.caller_role for entry in found} == {"operator"}
    assert {entry.decision for entry in found} == {audit_service_pb2.DECISION_ALLOWED}
    assert {entry.resource for entry in found} == {
        f"vms/{vm_id}",
        "node",
        *(f"vms/{vm_id}/containers/{name}" for name in ("sandbox-live", "sandbox-dev", "search")),
    }
    assert all(len(entry.trace_id) == 32 for entry in found)
    assert {fact.name: fact.word for fact in found[1].facts if fact.word} == {"image": image}
    assert SECRET not in str(found)
    whole = await verdict(it)
    assert (whole.fault, whole.entry_count) == ("", len(found))
    await it.stop()
    kept = b"".join(path.read_bytes() for path in (it.state_dir / "audit").iterdir())
    with closing(sqlite3.connect(it.state_dir / "hypervisor.db")) as database:
        kept += repr(database.execute("SELECT * FROM audit").fetchall()).encode()
    assert SECRET.encode() not in kept
    assert vm_id.encode() in kept
    await it.start()
    assert (await verdict(it)).signed_sequence == len(found)


async def test_who_may_not_is_in_the_log(it: Node) -> None:
    """A call that the contract does not allow its caller is there as denied, and a check finds the log whole."""
    watch = AuditServiceStub(it.channel).WatchAudit(audit_service_pb2.WatchAuditRequest())
    answers = aiter(watch)
    assert (await anext(answers)).HasField("bookmark")
    async with grpc.aio.insecure_channel(f"unix:{it.run_dir / 'edge' / 'edge.sock'}") as channel:
        routes = route_service_pb2_grpc.RouteServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="may not call"):
            await routes.ListRoutes(route_service_pb2.ListRoutesRequest())
    async with asyncio.timeout(SECONDS):
        entry = (await anext(answers)).entry
    watch.cancel()  # type: ignore[attr-defined]  # mesh's streams can be
    assert (entry.caller_role, entry.action, entry.decision) == (
        "edge",
        "call.refused",
        audit_service_pb2.DECISION_DENIED,
    )
    assert entry.resource == "cellmesh.api.hypervisor.v1.RouteService/ListRoutes"
    assert (await verdict(it)).fault == ""


async def test_a_row_that_was_changed_behind_the_back_of_a_hypervisor_is_named(it: Node) -> None:
    """An entry that says another VM was deleted is found after a restart, and the hypervisor serves all the same."""
    await it.running()
    await it.stop()
    with closing(sqlite3.connect(it.state_dir / "hypervisor.db")) as database, database:
        database.execute("UPDATE audit SET action = 'vm.delete' WHERE sequence = 1")
    await it.start()
    found = await verdict(it)
    assert found.wrong_sequence == 1
    assert found.fault.startswith("Row 1 was changed")
