"""The simulator's own promises: its agent, its faults, and a crash that looks like one."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from cellmesh.api.common.v1 import container_pb2, exec_pb2
from cellmesh.api.guest.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    container_service_pb2,
    container_service_pb2_grpc,
)
from conformance.client import Answer, Api, eventually
from simulator import Fault, FaultKind, Hub, SimulatedGuest, SimulatedProcess

IMAGE = "sha256:" + "ab" * 32
INGRESS_PORT = 65537
KERNEL = b"\0" * 0x202 + b"HdrS"


@dataclass
class Host(agent_service_pb2_grpc.AgentServiceServicer):
    """A host that takes every Hello and report and remembers them."""

    hellos: asyncio.Queue[agent_service_pb2.HelloRequest] = field(default_factory=asyncio.Queue)
    reports: asyncio.Queue[agent_service_pb2.ReportRequest] = field(default_factory=asyncio.Queue)

    async def Hello(self, request: agent_service_pb2.HelloRequest, _context: object) -> agent_service_pb2.HelloResponse:
        """Say that this is epoch 1."""
        self.hellos.put_nowait(request)
        return agent_service_pb2.HelloResponse(
            vm_id=str(uuid.uuid4()), epoch=1, protocol_version=1, heartbeat_interval=Duration(seconds=60)
        )

    async def Report(
        self, requests: AsyncIterator[agent_service_pb2.ReportRequest], _context: object
    ) -> AsyncIterator[agent_service_pb2.ReportResponse]:
        """Acknowledge each report."""
        async for request in requests:
            self.reports.put_nowait(request)
            yield agent_service_pb2.ReportResponse(acknowledged_sequence=request.sequence)


@dataclass
class Cell:
    """One simulated VM whose process runs."""

    hub: Hub
    directory: Path
    process: asyncio.subprocess.Process
    host: Host

    @property
    def simulated(self) -> SimulatedProcess:
        """The hub's side of it."""
        return self.hub.process(self.directory)

    async def put(self, action: str, body: object = None) -> Answer:
        """Send a PUT without blocking the hub's loop."""
        return await asyncio.to_thread(Api(self.directory / "api.sock").put, action, body)

    async def boot(self) -> None:
        """Create and boot with one image plugged in."""
        kernel = self.directory / "vmlinuz"
        kernel.write_bytes(KERNEL)
        disk = {"path": str(kernel), "serial": "ab" * 10, "readonly": True, "image_type": "Raw"}
        vsock = {"cid": 3, "socket": str(self.directory / "vsock.sock")}
        config = {"payload": {"kernel": str(kernel)}, "disks": [disk], "vsock": vsock, "console": {"mode": "Off"}}
        assert (await self.put("vm.create", config)).status == 204
        assert (await self.put("vm.boot")).status == 204


@asynccontextmanager
async def cell(tmp_path: Path, guest: Callable[..., SimulatedGuest] = SimulatedGuest) -> AsyncIterator[Cell]:
    """Give a VM that is not created yet, and a host that listens for its agent."""
    directory = tmp_path / "vm"
    directory.mkdir()
    host, server = Host(), grpc.aio.server()
    agent_service_pb2_grpc.add_AgentServiceServicer_to_server(host, server)
    server.add_insecure_port(f"unix:{directory}/vsock.sock_1025")
    await server.start()
    async with Hub(tmp_path / "hub", guest=guest) as hub:
        process = await asyncio.create_subprocess_exec(
            hub.binary, "--api-socket", f"path={directory}/api.sock", env={}, cwd=directory
        )
        try:
            await asyncio.to_thread(eventually, (directory / "api.sock").exists)
            yield Cell(hub=hub, directory=directory, process=process, host=host)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await server.stop(grace=0)


@pytest.mark.asyncio
async def test_guest_says_hello_and_reports(tmp_path: Path) -> None:
    """A boot ends in Hello with the boot id and a first report without containers."""
    async with cell(tmp_path) as vm:
        await vm.boot()
        hello = await vm.host.hellos.get()
        report = await vm.host.reports.get()
        assert hello.boot_id == vm.simulated.guest.boot_id
        assert (report.epoch, report.sequence, len(report.containers)) == (1, 1, 0)


@pytest.mark.asyncio
async def test_container_lives_and_ends_by_its_policy(tmp_path: Path) -> None:
    """A container starts over the vsock, is reported, and comes back when it ends by itself."""
    async with cell(tmp_path) as vm:
        await vm.boot()
        await vm.host.reports.get()
        async with _agent(vm) as stub:
            spec = container_pb2.ContainerSpec(image=IMAGE)
            # Long enough to be reported: a report is how things are when it is written.
            spec.restart_policy.initial_backoff.FromMilliseconds(1000)
            request = container_service_pb2.StartContainerRequest(
                epoch=1, container_name="app", generation=1, spec=spec, ingress_port=INGRESS_PORT
            )
            started = await stub.StartContainer(request)
            assert started.status.state == container_pb2.CONTAINER_STATE_RUNNING
            seen = [(await vm.host.reports.get()).containers[0]]
            vm.simulated.guest.containers["app"].end(1)
            seen += [(await vm.host.reports.get()).containers[0] for _ in range(2)]
        assert [status.state for status in seen] == [
            container_pb2.CONTAINER_STATE_RUNNING,
            container_pb2.CONTAINER_STATE_BACKOFF,
            container_pb2.CONTAINER_STATE_RUNNING,
        ]
        assert seen[-1].restart_count == 1


@pytest.mark.asyncio
async def test_exec_echoes_its_input(tmp_path: Path) -> None:
    """`cat` gives back what it is fed and ends with 0 at the end of its input."""
    async with cell(tmp_path) as vm:
        await vm.boot()
        await vm.host.reports.get()
        async with _agent(vm) as stub:
            spec = container_pb2.ContainerSpec(image=IMAGE)
            await stub.StartContainer(
                container_service_pb2.StartContainerRequest(
                    epoch=1, container_name="app", generation=1, spec=spec, ingress_port=INGRESS_PORT
                )
            )
            frames = [answer.output async for answer in stub.Exec(_cat(b"some bytes"))]
        assert frames[0].HasField("opened")
        assert b"".join(frame.data.data for frame in frames) == b"some bytes"
        assert frames[-1].exited.stdout_length == 10


@pytest.mark.asyncio
async def test_container_answers_for_itself_until_its_generation_ends(tmp_path: Path) -> None:
    """A container's port gives HTTP answers that name it, on one connection, and is closed when its process ends."""
    async with cell(tmp_path) as vm:
        await vm.boot()
        await vm.host.reports.get()
        async with _agent(vm) as stub:
            await stub.StartContainer(_app())
            reader, writer = await _dial(vm, INGRESS_PORT)
            for target in ("/a?b=c", "/bytes/100000"):
                writer.write(f"POST {target} HTTP/1.1\r\nhost: here\r\nx-mark: 7\r\n".encode())
                writer.write(b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(dict(line.split(": ") for line in head.decode().splitlines()[1:-1])["content-length"])
                body = await reader.readexactly(size)
                if target == "/a?b=c":
                    said = json.loads(body)
            assert len(body) == 100_000
            assert (said["container"], said["epoch"], said["generation"]) == ("app", 1, 1)
            assert (said["vm_id"], said["target"], said["received"]) == (vm.simulated.guest.vm_id, "/a?b=c", 6)
            assert said["headers"] == {"host": "here", "x-mark": "7"}
            vm.simulated.guest.containers["app"].end(0)
            assert await reader.read() == b""
            writer.close()
            with pytest.raises(ConnectionRefusedError):
                await _dial(vm, INGRESS_PORT)


@pytest.mark.asyncio
async def test_container_echoes_a_websocket(tmp_path: Path) -> None:
    """An upgrade is a WebSocket that sends back each message, answers a ping, and returns the close."""
    async with cell(tmp_path) as vm:
        await vm.boot()
        await vm.host.reports.get()
        async with _agent(vm) as stub:
            await stub.StartContainer(_app())
            reader, writer = await _dial(vm, INGRESS_PORT)
            writer.write(b"GET /ws HTTP/1.1\r\nhost: here\r\nconnection: Upgrade\r\nupgrade: websocket\r\n")
            # The key and the answer to it are the ones in RFC 6455, section 1.3.
            writer.write(b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
            assert b"\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in await reader.readuntil(b"\r\n\r\n")
            for sent, answered in ((0x81, 0x81), (0x89, 0x8A), (0x88, 0x88)):
                masked = bytes(byte ^ key for byte, key in zip(b"hello", b"abcda", strict=True))
                writer.write(bytes((sent, 0x80 | 5)) + b"abcd" + masked)
                assert await reader.readexactly(7) == bytes((answered, 5)) + b"hello"
            assert await reader.read() == b""
            writer.close()


@pytest.mark.asyncio
async def test_refusal_carries_its_reason(tmp_path: Path) -> None:
    """An image that is no disk is refused as the contract says."""
    async with cell(tmp_path) as vm:
        await vm.boot()
        await vm.host.reports.get()
        async with _agent(vm) as stub:
            spec = container_pb2.ContainerSpec(image="sha256:" + "00" * 32)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.StartContainer(
                    container_service_pb2.StartContainerRequest(
                        epoch=1, container_name="app", generation=1, spec=spec, ingress_port=INGRESS_PORT
                    )
                )
        metadata: Any = caught.value.trailing_metadata()
        details = dict(metadata)["grpc-status-details-bin"]
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert b"IMAGE_NOT_ATTACHED" in details


@pytest.mark.asyncio
async def test_lost_reply_has_acted(tmp_path: Path) -> None:
    """The action is done although the caller never hears of it."""
    async with cell(tmp_path) as vm:
        vm.hub.faults.add(Fault(point="vm.delete", kind=FaultKind.LOSE_REPLY))
        await vm.boot()
        with pytest.raises((ConnectionError, IndexError)):
            await vm.put("vm.delete")
        assert (await vm.put("vm.delete")).status == 204
        assert not (vm.directory / "vsock.sock").exists()


@pytest.mark.asyncio
async def test_hanging_action_goes_on_when_released(tmp_path: Path) -> None:
    """A request waits for its rule's release and is answered then."""
    async with cell(tmp_path) as vm:
        fault = vm.hub.faults.add(Fault(point="vm.delete", kind=FaultKind.HANG))
        waiting = asyncio.create_task(vm.put("vm.delete"))
        await fault.met.wait()
        assert not waiting.done()
        fault.release()
        assert (await waiting).status == 204


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [FaultKind.CRASH_BEFORE, FaultKind.CRASH_AFTER])
async def test_crash_kills_the_process(tmp_path: Path, kind: FaultKind) -> None:
    """A crash at a point kills the process for good; its sockets stay behind, deaf."""
    async with cell(tmp_path) as vm:
        await vm.boot()
        vm.hub.faults.add(Fault(point="vm.pause", kind=kind))
        with pytest.raises((ConnectionError, IndexError)):
            await vm.put("vm.pause")
        assert await vm.process.wait() == -9
        assert (vm.directory / "api.sock").exists()


@pytest.mark.asyncio
async def test_failing_action_says_why(tmp_path: Path) -> None:
    """A rule's causes are what the API answers."""
    async with cell(tmp_path) as vm:
        vm.hub.faults.add(Fault(point="vm.delete", kind=FaultKind.FAIL, causes=("No", "Because")))
        answer = await vm.put("vm.delete")
        assert (answer.status, answer.value) == (500, ["Error from API", "No", "Because"])


@pytest.mark.asyncio
async def test_silent_guest_never_says_hello(tmp_path: Path) -> None:
    """The rule is used up by the boot, the machine runs, and nobody speaks until the next boot."""
    async with cell(tmp_path) as vm:
        fault = vm.hub.faults.add(Fault(point="guest.hello", kind=FaultKind.SILENT))
        await vm.boot()
        await fault.met.wait()
        silent = vm.simulated.guest.boot_id
        vm.simulated.guest.reboot()
        assert (await vm.host.hellos.get()).boot_id != silent


@pytest.mark.asyncio
async def test_guest_can_be_made_to_lie(tmp_path: Path) -> None:
    """A subclass says whatever it likes."""

    class Liar(SimulatedGuest):
        def hello_request(self) -> agent_service_pb2.HelloRequest:
            return agent_service_pb2.HelloRequest(boot_id="no uuid", protocol_versions=range(100))

    async with cell(tmp_path, Liar) as vm:
        await vm.boot()
        assert (await vm.host.hellos.get()).boot_id == "no uuid"


@pytest.mark.asyncio
async def test_a_hundred_vms_live_in_one_hub(tmp_path: Path) -> None:
    """Each of many processes has a VM of its own, and each ends alone."""
    async with Hub(tmp_path / "hub") as hub:
        cells = await asyncio.gather(*(_start(hub, tmp_path / f"vm-{number}") for number in range(100)))
        pids = [
            (await asyncio.to_thread(Api(cell.directory / "api.sock").get, "vmm.ping")).value["pid"] for cell in cells
        ]
        assert pids == [cell.process.pid for cell in cells]
        assert [(await cell.put("vmm.shutdown")).status for cell in cells] == [200] * 100
        assert {await cell.process.wait() for cell in cells} == {0}
        assert not hub.processes


async def _start(hub: Hub, directory: Path) -> Cell:
    directory.mkdir()
    socket = f"path={directory}/api.sock"
    process = await asyncio.create_subprocess_exec(hub.binary, "--api-socket", socket, env={}, cwd=directory)
    await asyncio.to_thread(eventually, (directory / "api.sock").exists)
    return Cell(hub=hub, directory=directory, process=process, host=Host())


@asynccontextmanager
async def _agent(vm: Cell) -> AsyncIterator[container_service_pb2_grpc.GuestContainerServiceAsyncStub]:
    """Reach the agent as the product does: through the hybrid vsock, behind a unix socket of the host."""

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(str(vm.directory / "vsock.sock"))
        inner_writer.write(b"CONNECT 1024\n")
        assert (await inner_reader.readline()).startswith(b"OK ")
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))

    path = vm.directory / "agent.sock"
    bridge = await asyncio.start_unix_server(join, str(path))
    async with bridge, grpc.aio.insecure_channel(f"unix:{path}") as channel:
        yield container_service_pb2_grpc.GuestContainerServiceStub(channel)


def _app() -> container_service_pb2.StartContainerRequest:
    spec = container_pb2.ContainerSpec(image=IMAGE)
    return container_service_pb2.StartContainerRequest(
        epoch=1, container_name="app", generation=1, spec=spec, ingress_port=INGRESS_PORT
    )


async def _dial(vm: Cell, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a port of the guest; raises ConnectionRefusedError."""
    reader, writer = await asyncio.open_unix_connection(str(vm.directory / "vsock.sock"))
    writer.write(b"CONNECT %d\n" % port)
    if not (await reader.readline()).startswith(b"OK "):
        writer.close()
        raise ConnectionRefusedError
    return reader, writer


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _cat(data: bytes) -> AsyncIterator[container_service_pb2.ExecRequest]:
    opening = exec_pb2.ExecOpen(container_name="app", exec_id=str(uuid.uuid4()), argv=["cat"])
    yield container_service_pb2.ExecRequest(input=exec_pb2.ExecInput(open=opening))
    stdin = exec_pb2.ExecStdin(data=data, eof=True)
    yield container_service_pb2.ExecRequest(input=exec_pb2.ExecInput(stdin=stdin))
