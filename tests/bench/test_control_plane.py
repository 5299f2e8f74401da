"""What the hypervisor itself costs: on simulated VMs, so that nothing of a guest is measured with it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.conftest import Interleave, Record
from bench.simulated_node import simulated_node
from cellmesh.api.hypervisor.v1 import vm_pb2, vm_service_pb2
from cellmesh.hypervisor.vmm.api import Api
from cellmesh.hypervisor.vmm.rest import RestClient
from support.node import Node
from support.raw_calls import channel

# Measured: 4.3 to 4.7 on three machines.
_CREATE_RATIO = 8.0
_VMS = 50
_KIB_PER_VM = 300.0
_PING = b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nContent-Length: 0\r\n\r\n"
_SERVERS = """
import asyncio, sys
import grpc.aio
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
async def main(directory, count):
    servers = []
    for number in range(count + 1):
        server = grpc.aio.server()
        server.add_insecure_port(f"unix:{directory}/{number}.sock")
        await server.start()
        servers.append(server)
        if number == 0:
            before = resident()
    print((resident() - before) / count)
    for server in servers:
        await server.stop(None)
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.fixture
def it(runner: asyncio.Runner) -> Iterator[Node]:
    """Give a hypervisor that has just started."""
    stack = AsyncExitStack()
    try:
        yield runner.run(stack.enter_async_context(simulated_node()))
    finally:
        runner.run(stack.aclose())


def test_create_vm_rpc(it: Node, runner: asyncio.Runner, interleave: Interleave, record: Record) -> None:
    """Prove that accepting a VM durably costs at most eight health checks."""
    created: list[vm_pb2.Vm] = []

    async def create() -> None:
        created.append(await it.create())

    async def settle() -> None:
        await it.until(created[-1].vm_id, vm_pb2.VM_STATE_RUNNING)

    async def nothing() -> float:
        begun = time.perf_counter()
        await health.Check(health_pb2.HealthCheckRequest())
        return time.perf_counter() - begun

    async def connect() -> grpc.aio.Channel:
        return channel(it.run_dir / "operator.sock")

    line = runner.run(connect())
    health: health_pb2_grpc.HealthAsyncStub = health_pb2_grpc.HealthStub(line)
    samples, floors = interleave(
        lambda: runner.run(create()),
        lambda: runner.run(nothing()),
        rounds=30,
        warmup=2,
        reset=lambda: runner.run(settle()),
    )
    runner.run(line.close())
    record(
        "create_vm_rpc",
        [1000 * sample for sample in samples],
        floors=[1000 * floor for floor in floors],
        unit="ms",
        max_ratio=_CREATE_RATIO,
        emulated=False,
        note="CreateVm until its answer, on the simulator; floor: health Check of the same server",
    )


def test_vmm_api_call(it: Node, runner: asyncio.Runner, interleave: Interleave, record: Record) -> None:
    """Measure a call of the VMM's API beside the same bytes over a plain socket."""
    vm = runner.run(it.running())
    path = it.run_dir / "vm" / vm.vm_id.replace("-", "")[:12] / "api.sock"
    api = Api(RestClient(socket=path, uid=path.stat().st_uid))
    samples, floors = interleave(lambda: runner.run(api.ping()), lambda: _ping(path), rounds=50, warmup=2)
    record(
        "vmm_api_call",
        [1000 * sample for sample in samples],
        floors=[1000 * floor for floor in floors],
        unit="ms",
        emulated=False,
        note="vmm.ping, on the simulator; floor: the same request over a plain socket",
    )


def test_hypervisor_rss_per_vm(it: Node, runner: asyncio.Runner, record: Record, tmp_path: Path) -> None:
    """Prove that a VM costs the hypervisor little memory."""
    assert it.process is not None
    hypervisor = psutil.Process(it.process.pid)

    async def run() -> None:
        vms = await asyncio.gather(*(it.create() for _ in range(_VMS)))
        for vm in vms:
            await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING)

    async def delete_all() -> None:
        for vm in (await it.vms.ListVms(vm_service_pb2.ListVmsRequest())).vms:
            await it.vms.DeleteVm(vm_service_pb2.DeleteVmRequest(request_id=str(uuid.uuid4()), vm_id=vm.vm_id))

    runner.run(it.running())  # what the first VM brings in is not the second's cost
    before = hypervisor.memory_info().rss
    runner.run(run())
    grown = (hypervisor.memory_info().rss - before) / _VMS
    runner.run(delete_all())
    done = subprocess.run(
        [sys.executable, "-c", _SERVERS, tmp_path, str(_VMS)], check=True, capture_output=True, text=True
    )
    record(
        "hypervisor_rss_per_vm",
        [grown / 1024],
        floors=[float(done.stdout) / 1024],
        unit="KiB",
        max_value=_KIB_PER_VM,
        emulated=False,
        note="on the simulator; floor: an empty gRPC server on a socket of its own",
    )


def _ping(path: Path) -> float:
    begun = time.perf_counter()
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(str(path))
        end.sendall(_PING)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += end.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")
    return time.perf_counter() - begun
