"""Commands in containers: run to their end, or one stream at a time to break it where a test wants."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from cellmesh.api.common.v1 import exec_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2
from cellmesh.cli.attach.session import ExecSession
from cellmesh.cli.connection import streaming
from cellmesh.mesh.errors import MeshError
from support.node import Node

SECONDS = 480.0
"""How long a command may take; 100 MB through an emulated guest on a busy machine need a quarter of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended and what it said."""

    exit_code: int
    oom_killed: bool
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Return standard output, stripped; AssertionError with both outputs if the command failed."""
        assert self.exit_code == 0, f"exit code {self.exit_code}: {self.stdout!r} {self.stderr!r}"
        return self.stdout.decode().strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A container of a node."""

    node: Node
    vm_id: str
    name: str

    def opening(self, *argv: str, **fields: Any) -> exec_pb2.ExecOpen:
        """Return the first frame of a new command."""
        return exec_pb2.ExecOpen(
            vm_id=self.vm_id, container_name=self.name, exec_id=str(uuid.uuid4()), argv=argv, **fields
        )

    async def run(self, *argv: str, stdin: bytes = b"", **fields: Any) -> Ended:
        """Run a command to its end, as `cellmesh exec` does."""
        outputs = {1: bytearray(), 2: bytearray()}

        async def keep(descriptor: int, data: bytes) -> None:
            outputs[descriptor] += data

        session = ExecSession(
            self.opening(*argv, **fields),
            lambda frames: streaming(self.node.containers.Exec(frames, timeout=SECONDS)),
            write=keep,
            on_break=lambda: None,
        )

        async def feed() -> None:
            for begin in range(0, len(stdin), 1 << 16):
                await session.input.room()
                session.input.feed(stdin[begin : begin + (1 << 16)])
                session.wake()
            session.input.close()
            session.wake()

        async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
            feeding = group.create_task(feed())
            exited = await session.run()
            feeding.cancel()
        return Ended(
            exit_code=exited.exit_code,
            oom_killed=exited.oom_killed,
            stdout=bytes(outputs[1]),
            stderr=bytes(outputs[2]),
        )

    async def shell(self, script: str) -> str:
        """Run a shell script and return what it says; AssertionError if it fails."""
        return (await self.run("sh", "-c", script)).text

    async def python(self, program: str) -> str:
        """Run a Python program and return what it says; AssertionError if it fails."""
        return (await self.run("python3", "-c", program)).text


async def refusals_of(it: Node, vm_id: str, name: str) -> list[str]:
    """Return the reasons for which a command in a container, its output and its stats are refused."""
    named = {"vm_id": vm_id, "container_name": name}

    async def run() -> None:
        await Box(node=it, vm_id=vm_id, name=name).run("true")

    async def read() -> None:
        async for _ in it.containers.StreamLogs(container_service_pb2.StreamLogsRequest(**named), timeout=SECONDS):
            pass

    async def count() -> None:
        await it.containers.GetStats(container_service_pb2.GetStatsRequest(**named))

    refusals = []
    for ask in (run, read, count):
        try:
            await ask()
        except* MeshError as errors:
            refusals += [error.reason for error in errors.exceptions if isinstance(error, MeshError)]
    return refusals


class ExecStream:
    """One stream of a command; leaving it breaks it, whatever the command is doing."""

    def __init__(self, node: Node, opening: exec_pb2.ExecOpen) -> None:
        self._frames: asyncio.Queue[exec_pb2.ExecInput | None] = asyncio.Queue()
        self._frames.put_nowait(exec_pb2.ExecInput(open=opening))
        self._call = node.containers.Exec(self._requests(), timeout=SECONDS)

    async def __aenter__(self) -> Self:
        """Give the stream; its first answer is still to come."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Break it."""
        self._frames.put_nowait(None)
        await self._call.aclose()

    def send(self, **frame: Any) -> None:
        """Send a frame, such as `ack=ExecAck(…)`."""
        self._frames.put_nowait(exec_pb2.ExecInput(**frame))

    async def read(self) -> exec_pb2.ExecOutput:
        """Return the next answer; raises MeshError if there is an error in its place."""
        async with asyncio.timeout(SECONDS):
            answer: container_service_pb2.ExecResponse = await anext(self._call)
        return answer.output

    async def read_output(self, count: int) -> bytes:
        """Return standard output until there are at least `count` bytes, passing over other frames."""
        data = bytearray()
        while len(data) < count:
            answer = await self.read()
            assert answer.WhichOneof("frame") != "exited", f"it ended after {bytes(data[-200:])!r}"
            data += answer.data.data
        return bytes(data)

    async def read_until(self, wanted: bytes) -> bytes:
        """Return standard output up to where `wanted` was said."""
        data = b""
        while wanted not in data:
            data += await self.read_output(1)
        return data

    async def read_exited(self) -> exec_pb2.ExecExited:
        """Pass over what comes before the end and return how the command ended."""
        while not (answer := await self.read()).HasField("exited"):
            pass
        return answer.exited

    async def _requests(self) -> AsyncIterator[container_service_pb2.ExecRequest]:
        while (frame := await self._frames.get()) is not None:
            yield container_service_pb2.ExecRequest(input=frame)
