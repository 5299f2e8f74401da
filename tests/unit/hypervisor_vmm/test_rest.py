"""The REST client against servers that misbehave in every way a broken-out VMM could."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cellmesh.hypervisor.vmm import Disk, VmmError, VmmInvalid, VmmRefused, VmmTimeout, VmmUnreachable, VmState
from cellmesh.hypervisor.vmm.api import Api
from cellmesh.hypervisor.vmm.rest import MAX_BODY, RestClient

Serve = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def path() -> Iterator[Path]:
    """Give a socket path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="cm-") as directory:
        yield Path(directory) / "api.sock"


@asynccontextmanager
async def server(path: Path, serve: Serve) -> AsyncIterator[None]:
    """Read one request a connection and let `serve` answer it."""
    handlers: set[asyncio.Task[None]] = set()
    async with await asyncio.start_unix_server(answering(serve, handlers), path):
        try:
            yield
        finally:
            for task in handlers:
                task.cancel()
            await asyncio.gather(*handlers)
            await asyncio.sleep(0)  # lets the transports close


def answering(
    serve: Serve, handlers: set[asyncio.Task[None]] | None = None
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Return what reads one request from a connection, has it answered and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None and handlers is not None:
            handlers.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await serve(head + await reader.readexactly(length), writer)
        except (OSError, EOFError, asyncio.CancelledError):
            return  # the client has gone, or the test is over
        finally:
            writer.close()

    return handle


def saying(answer: bytes) -> Serve:
    """Answer every request with these bytes."""

    async def serve(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return serve


def reply(body: object, status: str = "200") -> bytes:
    """Return an answer as cloud-hypervisor formats it, without a reason phrase."""
    content = json.dumps(body).encode()
    return b"HTTP/1.1 %s \r\nServer: Cloud Hypervisor API\r\nContent-Length: %d\r\n\r\n%s" % (
        status.encode(),
        len(content),
        content,
    )


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", VmmUnreachable),
        (b"HTTP/1.1 200 \r\nContent-Length: 10\r\n\r\nshort", VmmUnreachable),
        (b"SSH-2.0-nonsense\r\n\r\n", VmmInvalid),
        (b"HTTP/1.1 abc \r\n\r\n", VmmInvalid),
        (b"HTTP/1.1 200 \r\nContent-Length: -4\r\n\r\n", VmmInvalid),
        (b"HTTP/1.1 200 \r\nContent-Length: x\r\n\r\n", VmmInvalid),
        (b"HTTP/1.1 200 \r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1), VmmInvalid),
        (b"HTTP/1.1 200 \r\nA: " + b"x" * (1 << 20) + b"\r\n\r\n", VmmInvalid),
        (b"HTTP/1.1 200 \r\nContent-Length: 4\r\n\r\n{{{{", VmmInvalid),
        (b"HTTP/1.1 200 \r\nContent-Length: 100000\r\n\r\n" + b"[" * 100000, VmmInvalid),
        (b"HTTP/1.1 500 \r\nContent-Length: 3\r\n\r\n\x1b[2", VmmRefused),
    ],
)
async def test_a_bad_answer_is_a_typed_error(path: Path, answer: bytes, error: type[VmmError]) -> None:
    """Prove that whatever comes back, the caller gets one of our errors, on one printable line."""
    async with server(path, saying(answer)):
        with pytest.raises(error) as raised:
            await RestClient(socket=path, uid=os.getuid()).request("GET", "vm.info", seconds=30)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


@pytest.mark.asyncio
async def test_silence_is_a_timeout(path: Path) -> None:
    """Prove that a VMM that accepts and says nothing is given up."""
    asked = asyncio.Event()

    async def serve(request: bytes, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with server(path, serve):
        with pytest.raises(VmmTimeout, match=r"vmm\.ping"):
            await RestClient(socket=path, uid=os.getuid()).request("GET", "vmm.ping", seconds=1.0)
        # What was sent in time is read, though perhaps not before it was given up.
        async with asyncio.timeout(30):
            await asked.wait()


@pytest.mark.asyncio
async def test_no_socket_is_unreachable(path: Path) -> None:
    """Prove that a missing socket is told apart from a refusal."""
    with pytest.raises(VmmUnreachable):
        await RestClient(socket=path, uid=os.getuid()).request("GET", "vmm.ping", seconds=5)


@pytest.mark.asyncio
@pytest.mark.skipif(os.getuid() != 0, reason="only root can listen as another uid")
async def test_another_vms_api_at_the_socket_is_refused(path: Path) -> None:
    """Prove that a VMM cannot send us to another VM's API by linking to its socket."""
    asked = []

    async def serve(request: bytes, writer: asyncio.StreamWriter) -> None:
        asked.append(request)
        writer.write(reply({"state": "Running"}))
        await writer.drain()

    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        bound.setblocking(False)
        os.seteuid(300_001)
        try:
            listening = await asyncio.start_unix_server(answering(serve), sock=bound)
        finally:
            os.seteuid(0)
        async with listening:
            with pytest.raises(VmmInvalid, match="uid 300001"):
                await Api(RestClient(socket=path, uid=300_002)).info()
            assert asked == []
            assert (await Api(RestClient(socket=path, uid=300_001)).info()).state is VmState.RUNNING
            await asyncio.sleep(0)  # lets the transport close


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "answer",
    [
        reply(["Error from API", "The VM info is not available", "VM is not created"], "404"),
        reply(["Error from API", "The VM info is not available", "VM is not created"], "500"),
    ],
)
async def test_a_vmm_without_a_vm_says_so(path: Path, answer: bytes) -> None:
    """Prove that both wordings of no VM are an answer and not an error."""
    async with server(path, saying(answer)):
        assert (await Api(RestClient(socket=path, uid=os.getuid())).info()).state is VmState.NONE


@pytest.mark.asyncio
@pytest.mark.parametrize(("state", "lost"), [("Running", False), ("Created", True)])
async def test_a_lost_answer_is_looked_up(path: Path, state: str, lost: bool) -> None:
    """Prove that a boot whose answer was lost is a success if the VM runs, and else still a failure."""

    async def serve(request: bytes, writer: asyncio.StreamWriter) -> None:
        if b"vm.info" in request:
            writer.write(reply({"state": state, "config": {}}))
            await writer.drain()

    async with server(path, serve):
        api = Api(RestClient(socket=path, uid=os.getuid()))
        if lost:
            with pytest.raises(VmmUnreachable):
                await api.boot()
        else:
            await api.boot()


@pytest.mark.asyncio
async def test_a_disk_is_added_once(path: Path) -> None:
    """Prove that a disk whose serial is attached is not attached again, and always as Raw."""
    attached: list[dict[str, object]] = []

    async def serve(request: bytes, writer: asyncio.StreamWriter) -> None:
        if b"vm.add-disk" in request:
            attached.append(json.loads(request.partition(b"\r\n\r\n")[2]))
            return  # the answer is lost
        writer.write(reply({"state": "Running", "config": {"disks": attached}}))
        await writer.drain()

    disk = Disk(path=Path("/disk"), serial="abc", readonly=True)
    async with server(path, serve):
        api = Api(RestClient(socket=path, uid=os.getuid()))
        await api.add_disk(disk)
        await api.add_disk(disk)
    assert attached == [{"path": "/disk", "readonly": True, "serial": "abc", "image_type": "Raw"}]
