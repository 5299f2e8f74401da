"""One exec stream: frames of the caller in, output of a command out, until it ends or another stream takes it over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from cellmesh.api.common.v1 import exec_pb2
from cellmesh.api.guest.v1 import container_service_pb2
from simulator.commands import STDERR, STDOUT, SimulatedCommand
from simulator.errors import Refusal

_CHUNK = 64 * 1024
_Requests = AsyncIterator[container_service_pb2.ExecRequest]


class ExecStream:
    """Joins a caller to a command."""

    def __init__(self, command: SimulatedCommand, opening: exec_pb2.ExecOpen) -> None:
        command.attachments += 1
        command.pulse()
        self._command = command
        self._attachment = command.attachments
        self._sent = {STDOUT: opening.stdout_offset, STDERR: opening.stderr_offset}
        self._acknowledged = command.stdin_offset
        self._refusal: Refusal | None = None

    async def read(self, requests: _Requests) -> None:
        """Take the caller's frames until it has no more."""
        try:
            async for request in requests:
                self._take(request.input)
        except Refusal as refusal:
            self._refusal = refusal
            self._command.pulse()

    async def write(self) -> AsyncIterator[exec_pb2.ExecOutput]:
        """Yield frames for the caller; raises Refusal."""
        command = self._command
        while True:
            changed = command.changed
            due = self._due()
            for frame in due:
                yield frame
            if due:
                # While these were on their way more may have come, which has to go before any ending.
                continue
            if self._refusal is not None:
                raise self._refusal
            if command.attachments != self._attachment:
                message = "another stream took the command over"
                raise Refusal(grpc.StatusCode.ABORTED, "EXEC_ATTACHED_ELSEWHERE", message)
            if command.exit_code is not None:
                yield self._ending(command.exit_code)
                return
            await changed.wait()

    def _take(self, frame: exec_pb2.ExecInput) -> None:
        match frame.WhichOneof("frame"):
            case "stdin":
                self._command.feed(frame.stdin)
            case "signal":
                self._command.signal(frame.signal.number)
            case "open":
                raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "open is the first frame only")
            case _:
                return  # acknowledgements and sizes change nothing here: all output is kept

    def _due(self) -> list[exec_pb2.ExecOutput]:
        frames = []
        for stream, sent in self._sent.items():
            output = self._command.output[stream]
            for offset in range(sent, len(output), _CHUNK):
                data = exec_pb2.ExecData(stream=stream, offset=offset, data=bytes(output[offset : offset + _CHUNK]))
                frames.append(exec_pb2.ExecOutput(data=data))
            self._sent[stream] = max(sent, len(output))
        if self._acknowledged < self._command.stdin_offset:
            self._acknowledged = self._command.stdin_offset
            frames.append(exec_pb2.ExecOutput(stdin_ack=exec_pb2.ExecStdinAck(offset=self._acknowledged)))
        return frames

    def _ending(self, exit_code: int) -> exec_pb2.ExecOutput:
        output = self._command.output
        return exec_pb2.ExecOutput(
            exited=exec_pb2.ExecExited(
                exit_code=exit_code, stdout_length=len(output[STDOUT]), stderr_length=len(output[STDERR])
            )
        )


async def end_reading(reading: asyncio.Task[None]) -> None:
    """Stop taking frames."""
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
