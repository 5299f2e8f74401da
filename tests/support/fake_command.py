"""The far side of an exec stream: a few programs whose state outlives their streams, as in a real cell."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import grpc

from cellmesh.api.common.v1 import exec_pb2

_CHUNK = 4096
_PATIENCE_SECONDS = 0.05


class Gate:
    """Wakes those who wait for something to change, and lets them go when their call or everything ends."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._is_closed = False

    def open(self) -> None:
        """Let everybody look again."""
        with self._condition:
            self._condition.notify_all()

    def close(self) -> None:
        """Send everybody home."""
        self._is_closed = True
        self.open()

    def wait(self, is_true: Callable[[], bool], context: grpc.ServicerContext) -> bool:
        """Wait until `is_true`; return False when the call has ended instead."""
        with self._condition:
            while not is_true():
                if self._is_closed or not context.is_active():
                    return False
                # A call that ends notifies nobody here, so it is looked at now and then.
                self._condition.wait(_PATIENCE_SECONDS)
        return True


class FakeCommand:
    """`cat`, `flood N`, `fail N`, `both`, `size` and `trap`: input, output and exit of one command."""

    def __init__(self, frame: exec_pb2.ExecOpen) -> None:
        self._argv = list(frame.argv)
        self._gate = Gate()
        # A stream that broke may still be read when the next one is.
        self._taking = threading.Lock()
        self.stdin = bytearray()
        self.is_eof = False
        self.signals: list[int] = []
        self.acknowledged = 0
        self.output = {exec_pb2.OUTPUT_STREAM_STDOUT: bytearray(), exec_pb2.OUTPUT_STREAM_STDERR: bytearray()}
        self.exit_code: int | None = None
        self._run(frame.size if frame.HasField("size") else None)

    def attach(
        self,
        frame: exec_pb2.ExecOpen,
        inputs: Iterator[exec_pb2.ExecInput],
        context: grpc.ServicerContext,
        *,
        is_known: bool,
    ) -> Iterator[exec_pb2.ExecOutput]:
        """Serve one stream from the offsets it asks for."""
        # What is read from here on is to be acknowledged, so this is noted before anything of it can be.
        told = len(self.stdin)
        opened = exec_pb2.ExecOpened(resumed=is_known, stdin_offset=told)
        yield exec_pb2.ExecOutput(opened=opened)
        reader = threading.Thread(target=self._read, args=(inputs,), daemon=True)
        reader.start()
        sent = {
            exec_pb2.OUTPUT_STREAM_STDOUT: frame.stdout_offset,
            exec_pb2.OUTPUT_STREAM_STDERR: frame.stderr_offset,
        }
        while self._gate.wait(partial(self._has_news, sent, told), context):
            # Looked at before the output is: all of that is there by then.
            exit_code = self.exit_code
            if len(self.stdin) > told:
                told = len(self.stdin)
                yield exec_pb2.ExecOutput(stdin_ack=exec_pb2.ExecStdinAck(offset=told))
            for stream, output in self.output.items():
                while sent[stream] < len(output):
                    data = bytes(output[sent[stream] : sent[stream] + _CHUNK])
                    yield exec_pb2.ExecOutput(data=exec_pb2.ExecData(stream=stream, offset=sent[stream], data=data))
                    sent[stream] += len(data)
            if exit_code is not None:
                lengths = [len(output) for output in self.output.values()]
                exited = exec_pb2.ExecExited(exit_code=exit_code, stdout_length=lengths[0], stderr_length=lengths[1])
                yield exec_pb2.ExecOutput(exited=exited)
                return

    def _has_news(self, sent: dict[exec_pb2.OutputStream, int], told: int) -> bool:
        has_output = any(len(self.output[stream]) > offset for stream, offset in sent.items())
        return has_output or len(self.stdin) > told or self.exit_code is not None

    def _read(self, inputs: Iterator[exec_pb2.ExecInput]) -> None:
        try:
            for frame in inputs:
                with self._taking:
                    self._take(frame)
                self._gate.open()
        except grpc.RpcError:
            # The stream is over; the command goes on.
            return

    def _take(self, frame: exec_pb2.ExecInput) -> None:
        match frame.WhichOneof("frame"):
            case "stdin":
                fresh = frame.stdin.data[len(self.stdin) - frame.stdin.offset :]
                self.stdin += fresh
                self.is_eof = self.is_eof or frame.stdin.eof
                self._fed(fresh)
            case "signal":
                self.signals.append(frame.signal.number)
                if self._argv[0] == "trap":
                    self.exit_code = 128 + frame.signal.number
            case "resize":
                self._sized(frame.resize)
            case "ack":
                self.acknowledged = frame.ack.stdout_offset

    def _run(self, size: exec_pb2.TerminalSize | None) -> None:
        stdout = self.output[exec_pb2.OUTPUT_STREAM_STDOUT]
        match self._argv:
            case ["flood", count]:
                stdout += bytes(index % 251 for index in range(int(count)))
                self.exit_code = 0
            case ["fail", code, *_]:
                self.exit_code = int(code)
            case ["both"]:
                stdout += b"out\n"
                self.output[exec_pb2.OUTPUT_STREAM_STDERR] += b"err\n"
                self.exit_code = 0
            case ["size"] if size is not None:
                stdout += f"{size.rows}x{size.columns}\n".encode()
            case ["trap"]:
                stdout += b"ready\n"

    def _fed(self, data: bytes) -> None:
        if self._argv == ["cat"]:
            self.output[exec_pb2.OUTPUT_STREAM_STDOUT] += data
            if self.is_eof:
                self.exit_code = 0

    def _sized(self, size: exec_pb2.TerminalSize) -> None:
        if self._argv == ["size"]:
            self.output[exec_pb2.OUTPUT_STREAM_STDOUT] += f"{size.rows}x{size.columns}\n".encode()
            self.exit_code = 0
