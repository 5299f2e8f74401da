"""One command, from its start until everything it said has arrived or nobody came for it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

from cellmesh.guest.changes import Changes
from cellmesh.guest.containers.logs import Stream
from cellmesh.guest.containers.runtime import Command, RunningContainer, StartFailed, Stdio
from cellmesh.guest.errors import ExecAttachedElsewhere, ExecStartFailed
from cellmesh.guest.exec.buffers import InputQueue, OutputBuffer
from cellmesh.guest.exec.pumps import InputPump, OutputPump
from cellmesh.guest.reaper import Process
from cellmesh.guest.terminal import set_size

_KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a command is kept, seconds: running without a stream, after SIGHUP, and finished without one."""

    detached: float = 60.0
    hangup: float = 5.0
    finished: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """A terminal's size in characters."""

    rows: int = 24
    columns: int = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Output from an offset on."""

    stream: Stream
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTaken:
    """Input has been taken up to this offset."""

    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """How the command ended, and how much it said."""

    exit_code: int
    oom_killed: bool
    stdout_length: int
    stderr_length: int


Frame = Output | InputTaken | Exited


class Session:
    """A command with its buffers; `run` is its life, and somebody else's task."""

    def __init__(self, *, container: RunningContainer, command: Command, terminal: Terminal | None) -> None:
        self._container = container
        self._command = command
        self._terminal = terminal
        self._buffers = {Stream.STDOUT: OutputBuffer(), Stream.STDERR: OutputBuffer()}
        self._input = InputQueue()
        self._outputs: list[OutputPump] = []
        self._stdin: InputPump | None = None
        self._master: int | None = None
        self._process: Process | None = None
        self._started: asyncio.Future[ExecStartFailed | None] = asyncio.get_running_loop().create_future()
        self._exited: Exited | None = None
        self._attached = 0
        self._attachments = 0
        self.changes = Changes()

    @property
    def finished(self) -> bool:
        """Whether the command has ended and all it said is in the buffers."""
        return self._exited is not None

    @property
    def input_offset(self) -> int:
        """The offset up to which input has arrived."""
        return self._input.accepted

    async def started(self) -> None:
        """Wait until the command runs; raises ExecStartFailed."""
        error = await asyncio.shield(self._started)
        if error is not None:
            raise error

    async def run(self, patience: Patience) -> None:
        """Live: start, run, end, and wait for somebody to fetch what is left."""
        oom_kills = self._container.cgroup.oom_kills()
        try:
            process = await self._start()
        except (StartFailed, OSError) as error:
            code = error.exit_code if isinstance(error, StartFailed) else None
            self._started.set_result(ExecStartFailed(f"the command could not be started: {error}", exit_code=code))
            return
        except BaseException:
            self._started.set_result(ExecStartFailed("the command could not be started: a fault of the agent"))
            raise
        self._process = process
        self._started.set_result(None)
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._give_up_when_alone(patience))
                code = await asyncio.shield(process.exited)
                await self._finish(code, oom_kills)
                await self.wait_acknowledged(patience.finished)
                watch.cancel()
        finally:
            self._close()

    async def _start(self) -> Process:
        if self._terminal is not None:
            return await self._start_on_terminal(self._terminal)
        stdin, stdout, stderr = os.pipe(), os.pipe(), os.pipe()
        theirs = Stdio(stdin=stdin[0], stdout=stdout[1], stderr=stderr[1])
        ours = (stdin[1], stdout[0], stderr[0])
        try:
            process = await self._container.execute(self._command, theirs)
        except BaseException:
            for descriptor in ours:
                os.close(descriptor)
            raise
        finally:
            for descriptor in (stdin[0], stdout[1], stderr[1]):
                os.close(descriptor)
        self._stdin = InputPump(ours[0], self._input, self.changes.notify, terminal=False)
        for descriptor, stream in ((ours[1], Stream.STDOUT), (ours[2], Stream.STDERR)):
            self._outputs.append(OutputPump(descriptor, self._buffers[stream], self.changes.notify))
        return process

    async def _start_on_terminal(self, size: Terminal) -> Process:
        process, master = await self._container.execute_on_terminal(self._command, size.rows, size.columns)
        self._master = master
        self._stdin = InputPump(os.dup(master), self._input, self.changes.notify, terminal=True)
        self._outputs.append(OutputPump(os.dup(master), self._buffers[Stream.STDOUT], self.changes.notify))
        self._buffers[Stream.STDERR].closed = True
        return process

    async def _finish(self, code: int, oom_kills_before: int) -> None:
        if self._stdin is not None:
            self._stdin.close()
        for pump in self._outputs:
            pump.finish()
        while not all(buffer.closed for buffer in self._buffers.values()):
            await self.changes.after(self.changes.version)
        killed = code == _KILLED and self._container.cgroup.oom_kills() > oom_kills_before
        self._exited = Exited(
            exit_code=code,
            oom_killed=killed,
            stdout_length=self._buffers[Stream.STDOUT].end,
            stderr_length=self._buffers[Stream.STDERR].end,
        )
        self.changes.notify()

    async def wait_acknowledged(self, patience: float) -> None:
        """Wait until all output has arrived, at most `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                while any(buffer.start < buffer.end for buffer in self._buffers.values()):
                    await self.changes.after(self.changes.version)
        except TimeoutError:
            return  # Nobody came: what was not fetched is gone.

    async def _give_up_when_alone(self, patience: Patience) -> None:
        while True:
            while self._attached:
                await self.changes.after(self.changes.version)
            try:
                async with asyncio.timeout(patience.detached):
                    while not self._attached:
                        await self.changes.after(self.changes.version)
            except TimeoutError:
                # Who came back as the time ran out has come back.
                if not self._attached:
                    break
        self.send_signal(signal.SIGHUP, group=True)
        if self._process is not None:
            try:
                async with asyncio.timeout(patience.hangup):
                    await asyncio.shield(self._process.exited)
            except TimeoutError:
                self.send_signal(signal.SIGKILL, group=True)
        for pump in self._outputs:
            pump.close()

    def attach(self, stdout_offset: int, stderr_offset: int) -> "Attachment":
        """Attach a stream from these offsets, in place of an earlier one; raises ExecOffsetGone."""
        offsets = {Stream.STDOUT: stdout_offset, Stream.STDERR: stderr_offset}
        for stream, offset in offsets.items():
            self._buffers[stream].read(offset)
        self._attachments += 1
        self._attached = self._attachments
        attachment = Attachment(self, self._attachments, offsets)
        self.acknowledge(stdout_offset, stderr_offset)
        self.changes.notify()
        return attachment

    def detach(self, attachment: int) -> None:
        """Let a stream go; a later one stays."""
        if self._attached == attachment:
            self._attached = 0
            self.changes.notify()

    def is_attached(self, attachment: int) -> bool:
        """Whether this stream is still the command's."""
        return self._attached == attachment

    def acknowledge(self, stdout_offset: int, stderr_offset: int) -> None:
        """Let go of output that has arrived."""
        freed = self._buffers[Stream.STDOUT].acknowledge(stdout_offset)
        freed = self._buffers[Stream.STDERR].acknowledge(stderr_offset) or freed
        if freed:
            for pump in self._outputs:
                pump.resume()
            self.changes.notify()

    async def accept_input(self, offset: int, data: bytes, *, eof: bool) -> None:
        """Take input, waiting while the command does not; raises ExecOffsetGone at a gap."""
        self._input.accept(offset, data, eof=eof)
        if self._stdin is not None:
            self._stdin.resume()
        while self._input.full and not self.finished:
            await self.changes.after(self.changes.version)

    def resize(self, size: Terminal) -> None:
        """Tell the terminal its new size; without a terminal nothing happens."""
        if self._master is not None:
            set_size(self._master, size.rows, size.columns)

    def send_signal(self, number: int, *, group: bool = False) -> None:
        """Signal the command, or all it started as well."""
        if self._process is not None:
            self._process.send_signal(number, group=group)

    def frames_after(self, offsets: dict[Stream, int], input_taken: int) -> list[Frame]:
        """Return what a stream that has come this far should be sent next."""
        frames: list[Frame] = []
        for stream, buffer in self._buffers.items():
            data = buffer.read(max(offsets[stream], buffer.start))
            if data:
                frames.append(Output(stream=stream, offset=max(offsets[stream], buffer.start), data=data))
        if self._input.written > input_taken:
            frames.append(InputTaken(offset=self._input.written))
        if not frames and self._exited is not None:
            frames.append(self._exited)
        return frames

    def _close(self) -> None:
        for pump in (*self._outputs, *((self._stdin,) if self._stdin else ())):
            pump.close()
        if self._master is not None:
            os.close(self._master)
            self._master = None


class Attachment:
    """One stream's place in a command's output."""

    def __init__(self, session: Session, number: int, offsets: dict[Stream, int]) -> None:
        self.session = session
        self._number = number
        self._offsets = offsets
        self._input_taken = 0

    def close(self) -> None:
        """Let the command go."""
        self.session.detach(self._number)

    async def frames(self) -> AsyncIterator[Frame]:
        """Yield frames up to the end; raises ExecAttachedElsewhere when a later stream takes over."""
        session = self.session
        while True:
            version = session.changes.version
            if not session.is_attached(self._number):
                raise ExecAttachedElsewhere("a later stream took the command over; resume to take it back")
            for frame in session.frames_after(self._offsets, self._input_taken):
                yield frame
                match frame:
                    case Output(stream=stream, offset=offset, data=data):
                        self._offsets[stream] = offset + len(data)
                    case InputTaken(offset=offset):
                        self._input_taken = offset
                    case Exited():
                        return
                version = -1
            if version >= 0:
                await session.changes.after(version)
