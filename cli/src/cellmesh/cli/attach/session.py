"""One command in a container, across as many streams as it takes: nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from cellmesh.api.common.v1 import exec_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2
from cellmesh.cli.attach.input import InputBuffer
from cellmesh.cli.connection import Patience, Stream
from cellmesh.cli.errors import ExecLostError
from cellmesh.cli.refusal import is_broken_stream
from cellmesh.cli.streams import OutputLostError

Frames = AsyncIterator[container_service_pb2.ExecRequest]
Answers = Stream[container_service_pb2.ExecResponse]
OpenStream = Callable[[Frames], Answers]
Write = Callable[[int, bytes], Awaitable[None]]

# The far side keeps 1 MiB of output until it is acknowledged; well before that it is told.
_ACK_AFTER = 128 * 1024
_MOST_CONTROLS = 64


class ExecSession:
    """Carries input and signals to a command and its output back, and resumes by offsets when a stream breaks."""

    def __init__(
        self,
        open_frame: exec_pb2.ExecOpen,
        open_stream: OpenStream,
        *,
        write: Write,
        on_break: Callable[[], None],
    ) -> None:
        self._on_break = on_break
        self._open_frame = open_frame
        self._open_stream = open_stream
        self._write = write
        self._offsets = {exec_pb2.OUTPUT_STREAM_STDOUT: 0, exec_pb2.OUTPUT_STREAM_STDERR: 0}
        self._unacknowledged = 0
        self._controls: deque[exec_pb2.ExecInput] = deque(maxlen=_MOST_CONTROLS)
        self._wake = asyncio.Event()
        self._is_broken_pipe = False
        self._output_lost: OutputLostError | None = None
        self._was_opened = False
        self._stream_number = 0
        self.input = InputBuffer()
        self.is_attached = False
        """Whether the command is there to hear signals; otherwise Ctrl-C is for us."""

    def wake(self) -> None:
        """Look for something to send: input was fed or has ended."""
        self._wake.set()

    def resize(self, size: exec_pb2.TerminalSize) -> None:
        """Tell the command its terminal's new size."""
        self._open_frame.size.CopyFrom(size)
        self._control(exec_pb2.ExecInput(resize=size))

    def send_signal(self, number: int) -> None:
        """Send the command a signal."""
        self._control(exec_pb2.ExecInput(signal=exec_pb2.ExecSignal(number=number)))

    async def run(self) -> exec_pb2.ExecExited:
        """Stay with the command until it ends; raises MeshError when it can't be run or reached any more."""
        patience = Patience()
        while True:
            try:
                exited = await self._attach(patience)
            except Exception as error:
                if not is_broken_stream(error):
                    raise
                broken: Exception = error
            else:
                if exited is not None and self._output_lost is not None:
                    raise self._output_lost
                if exited is not None:
                    return exited
                broken = ExecLostError("The command's stream ended before the command did.")
            self._on_break()
            await patience.wait(broken)

    async def _attach(self, patience: Patience) -> exec_pb2.ExecExited | None:
        opened = asyncio.Event()
        self._open_frame.resume = self._was_opened
        self._open_frame.stdout_offset = self._offsets[exec_pb2.OUTPUT_STREAM_STDOUT]
        self._open_frame.stderr_offset = self._offsets[exec_pb2.OUTPUT_STREAM_STDERR]
        try:
            async with aclosing(self._open_stream(self._frames(opened, self._stream_number))) as answers:
                async for answer in answers:
                    output = answer.output
                    match output.WhichOneof("frame"):
                        case "opened":
                            self.input.rewind(output.opened.stdin_offset)
                            self._was_opened = self.is_attached = True
                            patience.succeeded()
                            opened.set()
                        case "data":
                            await self._deliver(output.data)
                        case "stdin_ack":
                            self.input.acknowledge(output.stdin_ack.offset)
                            self._wake.set()
                        case "exited":
                            self._check_complete(output.exited)
                            return output.exited
        finally:
            self.is_attached = False
            # Lets the frames of this stream end, so that they take nothing from the next one.
            self._stream_number += 1
            opened.set()
            self._wake.set()
        return None

    async def _frames(self, opened: asyncio.Event, stream_number: int) -> Frames:
        first = exec_pb2.ExecOpen()
        first.CopyFrom(self._open_frame)
        yield _request(exec_pb2.ExecInput(open=first))
        await opened.wait()
        while stream_number == self._stream_number:
            self._wake.clear()
            if self._controls:
                yield _request(self._controls.popleft())
            elif self._unacknowledged >= _ACK_AFTER:
                self._unacknowledged = 0
                yield _request(exec_pb2.ExecInput(ack=self._acknowledgement()))
            elif (stdin := self.input.take()) is not None:
                yield _request(exec_pb2.ExecInput(stdin=stdin))
            else:
                await self._wake.wait()

    def _acknowledgement(self) -> exec_pb2.ExecAck:
        return exec_pb2.ExecAck(
            stdout_offset=self._offsets[exec_pb2.OUTPUT_STREAM_STDOUT],
            stderr_offset=self._offsets[exec_pb2.OUTPUT_STREAM_STDERR],
        )

    async def _deliver(self, data: exec_pb2.ExecData) -> None:
        expected = self._offsets.get(data.stream)
        if expected is None or data.offset > expected:
            raise ExecLostError(f"Output is missing: byte {data.offset} came where {expected} was due.")
        fresh = data.data[expected - data.offset :]
        if fresh and not self._is_broken_pipe:
            await self._print(data.stream, fresh)
        # Acknowledged is only what was written: a byte that we lose is lost to the person.
        self._offsets[data.stream] = expected + len(fresh)
        self._unacknowledged += len(fresh)
        if self._unacknowledged >= _ACK_AFTER:
            self._wake.set()

    async def _print(self, stream: exec_pb2.OutputStream, data: bytes) -> None:
        try:
            await self._write(2 if stream == exec_pb2.OUTPUT_STREAM_STDERR else 1, data)
        except BrokenPipeError:
            self._end_output()
        except OutputLostError as error:
            self._output_lost = error
            self._end_output()

    def _end_output(self) -> None:
        """Do as a local pipe does: the command is told, and what it still writes is thrown away."""
        self._is_broken_pipe = True
        self.send_signal(signal.SIGPIPE)

    def _check_complete(self, exited: exec_pb2.ExecExited) -> None:
        received = self._acknowledgement()
        if (received.stdout_offset, received.stderr_offset) != (exited.stdout_length, exited.stderr_length):
            raise ExecLostError("The command has ended, but not all of its output arrived.")

    def _control(self, frame: exec_pb2.ExecInput) -> None:
        self._controls.append(frame)
        self._wake.set()


def _request(frame: exec_pb2.ExecInput) -> container_service_pb2.ExecRequest:
    return container_service_pb2.ExecRequest(input=frame)
