"""The few programs a simulated container can run, and the output each keeps until it is acknowledged."""

from __future__ import annotations

import asyncio

import grpc

from cellmesh.api.common.v1 import exec_pb2
from simulator.errors import Refusal

STDOUT, STDERR = exec_pb2.OUTPUT_STREAM_STDOUT, exec_pb2.OUTPUT_STREAM_STDERR


class SimulatedCommand:
    """One command: `cat`, `echo WORDS`, `true`, `false`, `sleep SECONDS`, `seq N`, `sh -c 'exit N'`."""

    def __init__(self, argv: list[str]) -> None:
        self.output = {STDOUT: bytearray(), STDERR: bytearray()}
        self.stdin_offset = 0
        self.exit_code: int | None = None
        self.changed = asyncio.Event()
        self.attachments = 0
        self._reads_stdin = False
        self._timer: asyncio.TimerHandle | None = None
        self._start(argv)

    def feed(self, frame: exec_pb2.ExecStdin) -> None:
        """Take input; bytes it has are skipped, a gap raises Refusal."""
        if frame.offset > self.stdin_offset:
            message = f"input continues at {self.stdin_offset}, not at {frame.offset}"
            raise Refusal(grpc.StatusCode.OUT_OF_RANGE, "EXEC_OFFSET_GONE", message)
        fresh = frame.data[self.stdin_offset - frame.offset :]
        self.stdin_offset += len(fresh)
        if self._reads_stdin:
            self.output[STDOUT] += fresh
            if frame.eof:
                self._exit(0)
        self.pulse()

    def signal(self, number: int) -> None:
        """End it by a signal."""
        self._exit(128 + number)

    def pulse(self) -> None:
        """Wake whoever waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()

    def close(self) -> None:
        """Forget the timer of a sleeping command."""
        if self._timer is not None:
            self._timer.cancel()

    def _start(self, argv: list[str]) -> None:
        match argv:
            case ["cat"]:
                self._reads_stdin = True
            case ["echo", *words]:
                self._print(" ".join(words) + "\n")
            case ["true"]:
                self._exit(0)
            case ["false"]:
                self._exit(1)
            case ["seq", last] if last.isdigit():
                self._print("".join(f"{number}\n" for number in range(1, int(last) + 1)))
            case ["sleep", seconds]:
                self._timer = asyncio.get_running_loop().call_later(float(seconds), self._exit, 0)
            case ["sh", "-c", script] if script.startswith("exit ") and script[5:].isdigit():
                self._exit(int(script[5:]) % 256)
            case _:
                message = f"no program is called {argv[0]} in a simulated container"
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "EXEC_START_FAILED", message)

    def _print(self, text: str) -> None:
        self.output[STDOUT] += text.encode()
        self._exit(0)

    def _exit(self, code: int) -> None:
        if self.exit_code is None:
            self.exit_code = code
            self.pulse()
