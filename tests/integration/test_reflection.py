"""The operator socket to a client that has none of our stubs: it lists, describes and calls every service."""

from __future__ import annotations

import asyncio
import json
import sys
import sysconfig
import uuid
from pathlib import Path
from typing import Any

import pytest

from simulator import Hub
from support import reflection_client
from support.fake_envoy import fake_admin, fake_envoy
from support.hollow_images import hollow_container, hollow_guest
from support.node import Node, node, short_directory

OURS = "cellmesh.api.hypervisor.v1"
AUDIT = "cellmesh.api.audit.v1.AuditService"
SERVICES = {
    f"{OURS}.VmService": {
        "CreateVm",
        "GetVm",
        "ListVms",
        "StartVm",
        "StopVm",
        "RecycleVm",
        "DeleteVm",
        "WatchVms",
        "CheckVmHealth",
    },
    f"{OURS}.ContainerService": {
        "StartContainer",
        "StopContainer",
        "RestartContainer",
        "DeleteContainer",
        "GetContainer",
        "ListContainers",
        "Exec",
        "StreamLogs",
        "GetStats",
    },
    f"{OURS}.EventService": {"ListEvents", "WatchEvents"},
    f"{OURS}.NodeService": {"GetNode", "DrainNode"},
    f"{OURS}.RouteService": {
        "GetRoute",
        "ListRoutes",
        "SwitchRoute",
        "WatchRoutes",
        "WatchTraffic",
        "ActivateRoute",
    },
}
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
STANDARD = {"grpc.health.v1.Health", *REFLECTION, "grpc.channelz.v1.Channelz"}
# For all of its calls together, each of which has less.
_SECONDS = 120.0
SCRIPT = Path(reflection_client.__file__)


async def ask(it: Node, *calls: dict[str, Any]) -> dict[str, Any]:
    """Run the client, which cannot import cellmesh, and return what it tells."""
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", SCRIPT, sysconfig.get_path("purelib"), it.run_dir / "operator.sock"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(_SECONDS):
        told, errors = await client.communicate(json.dumps(calls).encode())
    assert client.returncode == 0, errors.decode()
    answers: dict[str, Any] = json.loads(told)
    return answers


def call(method: str, *requests: dict[str, Any], most: int = 1) -> dict[str, Any]:
    """Write one call for the client; `most` answers of a stream are read."""
    return {"method": method, "requests": list(requests or ({},)), "most": most}


def calls_of_every_method(vm_id: str, user_id: str, image: str) -> list[dict[str, Any]]:
    """Write a call that succeeds for every RPC of ours, streams included, in an order in which it does."""
    vm, box = {"vmId": vm_id}, {"vmId": vm_id, "containerName": "sandbox-live"}
    open_ = {**box, "execId": str(uuid.uuid4()), "argv": ["echo", "hello"]}
    route, sidecar = {**vm, "prefix": "/"}, {**vm, "containerName": "sidecar"}

    def mutation(**fields: object) -> dict[str, Any]:
        return {"requestId": str(uuid.uuid4()), **fields}

    return [
        call(f"{OURS}.{method}", *requests, most=most)
        for method, most, *requests in (
            ("VmService/CreateVm", 1, mutation(userId=str(uuid.uuid4()))),
            ("VmService/GetVm", 1, {"userId": user_id}),
            ("VmService/ListVms", 1, {"states": ["VM_STATE_RUNNING"]}),
            ("VmService/WatchVms", 2, {}),
            ("VmService/CheckVmHealth", 1, vm),
            ("ContainerService/StartContainer", 1, mutation(**box, spec={"image": image})),
            ("ContainerService/GetContainer", 1, box),
            ("RouteService/GetRoute", 1, route),
            ("RouteService/ListRoutes", 1, vm),
            ("RouteService/SwitchRoute", 1, mutation(**route, target={"containerName": "sandbox-live"})),
            ("RouteService/WatchRoutes", 3, vm),
            ("RouteService/WatchTraffic", 1, vm),
            ("RouteService/ActivateRoute", 1, {"userId": user_id, "prefix": "/"}),
            ("ContainerService/ListContainers", 1, vm),
            ("ContainerService/GetStats", 1, box),
            ("ContainerService/Exec", 9, {"input": {"open": open_}}, {"input": {"stdin": {"eof": True}}}),
            ("ContainerService/StreamLogs", 9, box),
            ("ContainerService/RestartContainer", 1, mutation(**box)),
            ("ContainerService/StopContainer", 1, mutation(**box)),
            ("ContainerService/StartContainer", 1, mutation(**sidecar, spec={"image": image})),
            ("ContainerService/DeleteContainer", 1, mutation(**sidecar, force=True)),
            ("EventService/ListEvents", 1, {}),
            ("EventService/WatchEvents", 3, {"fromBeginning": True}),
            ("NodeService/GetNode", 1, {}),
            ("NodeService/DrainNode", 1, mutation(draining=False)),
            ("VmService/RecycleVm", 1, mutation(**vm)),
            ("VmService/StopVm", 1, mutation(**vm)),
            ("VmService/StartVm", 1, mutation(**vm)),
            ("VmService/DeleteVm", 1, mutation(**vm)),
        )
    ]


@pytest.mark.asyncio
async def test_a_client_without_stubs_calls_every_rpc() -> None:
    """What it needs to know of us it gets by reflection: names, types, and through them every RPC there is."""
    with short_directory() as directory:
        images = directory / "state" / "images"
        hollow_guest(images)
        image = hollow_container(images)
        async with Hub(directory / "hub") as hub, node(directory, hub.binary) as it:
            vm = await it.running()
            edge, counters = it.run_dir / "edge", {f"cluster.{vm.user_id}/live.upstream_rq_completed": 7}
            async with fake_envoy(edge / "edge.sock"), fake_admin(edge / "admin.sock", counters):
                told = await ask(it, *calls_of_every_method(vm.vm_id, vm.user_id, image))
    assert {name: set(methods) for name, methods in told["services"].items() if name.startswith(OURS)} == SERVICES
    everything = {f"{name}/{method}" for name, methods in SERVICES.items() for method in methods}
    assert {each["method"] for each in told["calls"]} == everything
    assert [each for each in told["calls"] if each["code"] != "OK" or not answered(each)] == []
    by_method = {each["method"].rpartition(".")[2]: each["answers"] for each in told["calls"]}
    assert by_method["VmService/GetVm"][0]["vm"]["vmId"] == vm.vm_id
    assert by_method["ContainerService/Exec"][-1]["output"]["exited"] == {"stdoutLength": "6"}
    assert by_method["RouteService/SwitchRoute"][0]["route"]["state"] == "ROUTE_STATE_SERVING"
    assert by_method["RouteService/WatchTraffic"][0]["traffic"][0]["requests"] == "7"
    assert any("event" in answer for answer in by_method["EventService/WatchEvents"])


@pytest.mark.asyncio
async def test_a_client_without_stubs_calls_the_standard_services_and_reads_errors() -> None:
    """Health, reflection and channelz answer; a refusal carries its reason, on a stream both ways too."""
    nobody = {"vmId": str(uuid.uuid4()), "containerName": "sandbox-live"}
    open_ = {**nobody, "execId": str(uuid.uuid4()), "argv": ["true"]}
    with short_directory() as directory:
        hollow_guest(directory / "state" / "images")
        async with Hub(directory / "hub") as hub, node(directory, hub.binary) as it:
            told = await ask(
                it,
                call("grpc.health.v1.Health/Check", {"service": f"{OURS}.VmService"}),
                *(call(f"{version}/ServerReflectionInfo", {"listServices": "*"}) for version in REFLECTION),
                call("grpc.channelz.v1.Channelz/GetServers"),
                call(f"{OURS}.VmService/GetVm", {"vmId": "not an id"}),
                call(f"{OURS}.ContainerService/Exec", {"input": {"open": open_}}),
                call(f"{OURS}.ContainerService/StreamLogs", nobody),
            )
    assert set(told["services"]) == STANDARD | set(SERVICES) | {AUDIT}
    healthy, version_1, version_1_alpha, channelz, *refused = told["calls"]
    assert healthy["answers"] == [{"status": "SERVING"}]
    for reflected in (version_1, version_1_alpha):
        assert len(reflected["answers"][0]["listServicesResponse"]["service"]) == len(told["services"])
    assert channelz["answers"][0]["server"]
    assert [(each["code"], each["reason"]) for each in refused] == [
        ("INVALID_ARGUMENT", "INVALID_REQUEST"),
        ("NOT_FOUND", "VM_NOT_FOUND"),
        ("NOT_FOUND", "VM_NOT_FOUND"),
    ]


@pytest.mark.asyncio
@pytest.mark.parametrize("version", REFLECTION)
async def test_every_kind_of_symbol_can_be_described(version: str) -> None:
    """A method, a field, a oneof and an enum value lead to their file, as `grpcurl describe` asks."""
    found = {
        f"{OURS}.VmService.CreateVm": True,
        f"{OURS}.CreateVmRequest.user_id": True,
        "cellmesh.api.common.v1.ExecInput.frame": True,
        f"{OURS}.VmState.VM_STATE_RUNNING": True,
        f"{OURS}.VM_STATE_RUNNING": True,
        f"{OURS}.VmService.NoSuchMethod": False,
        f"{OURS}.NoSuchService.CreateVm": False,
        OURS: False,
        "": False,
    }
    with short_directory() as directory:
        hollow_guest(directory / "state" / "images")
        async with Hub(directory / "hub") as hub, node(directory, hub.binary) as it:
            told = await ask(
                it,
                *(call(f"{version}/ServerReflectionInfo", {"fileContainingSymbol": symbol}) for symbol in found),
            )
    answers = [each["answers"][0] for each in told["calls"]]
    assert {symbol: "fileDescriptorResponse" in answer for symbol, answer in zip(found, answers, strict=True)} == found
    assert all("errorResponse" in answer for answer in answers[-4:])


@pytest.mark.asyncio
async def test_the_client_refuses_to_run_beside_our_stubs(tmp_path: Path) -> None:
    """The control: with cellmesh in reach the client says that it would prove nothing, and calls nobody."""
    (tmp_path / "cellmesh").mkdir()
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", SCRIPT, tmp_path, tmp_path / "nobody.sock"), stderr=asyncio.subprocess.PIPE
    )
    _, errors = await client.communicate()
    assert client.returncode == 2
    assert b"prove nothing" in errors


def answered(told: dict[str, Any]) -> bool:
    """Tell whether a call got an answer; a container that never wrote has no log to stream."""
    return bool(told["answers"]) or told["method"].endswith("/StreamLogs")
