"""Exec sessions with real commands, streams that come and go, and buffers that fill."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cellmesh.guest.containers.logs import Stream
from cellmesh.guest.containers.model import ContainerSpec
from cellmesh.guest.containers.runtime import Command
from cellmesh.guest.errors import (
    ContainerNotRunning,
    ExecAttachedElsewhere,
    ExecNotFound,
    ExecOffsetGone,
    ExecStartFailed,
    InvalidRequest,
    TooManyExecs,
)
from cellmesh.guest.exec.buffers import CAPACITY
from cellmesh.guest.exec.session import Attachment, Exited, InputTaken, Output, Patience, Terminal
from cellmesh.guest.exec.sessions import MAX_RUNNING, Opening, Sessions
from support.local_runtime import IMAGE, local_cell, until

pytestmark = pytest.mark.asyncio
_ID = "0a000000-0000-4000-8000-000000000000"


@asynccontextmanager
async def _sessions(patience: Patience | None = None) -> AsyncIterator[Sessions]:
    async with local_cell() as cell:
        await cell.start("live", 1, ContainerSpec(image=IMAGE, argv=("/bin/sleep", "1000")))
        sessions = Sessions(cell.containers, cell.group, patience)
        try:
            yield sessions
        finally:
            for entry in list(sessions._entries.values()):
                entry.session.send_signal(9, group=True)
            sessions.stop()


def _opening(script: str, **options: object) -> Opening:
    fields = {"container_name": "live", "exec_id": _ID, "command": Command(argv=("/bin/sh", "-c", script)), **options}
    return Opening(**fields)  # type: ignore[arg-type]


async def _collect(attachment: Attachment) -> tuple[bytes, bytes, Exited]:
    outputs = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
    async for frame in attachment.frames():
        match frame:
            case Output(stream=stream, offset=offset, data=data):
                assert offset == len(outputs[stream])
                outputs[stream] += data
                attachment.session.acknowledge(len(outputs[Stream.STDOUT]), len(outputs[Stream.STDERR]))
            case Exited():
                return bytes(outputs[Stream.STDOUT]), bytes(outputs[Stream.STDERR]), frame
    raise AssertionError("the frames ended without the end")


async def test_both_streams_and_the_exit_code_arrive() -> None:
    """All output comes before the end, and the end says how much it was."""
    async with _sessions() as sessions:
        attachment, resumed = await sessions.open(_opening("echo out; echo error >&2; exit 9"))
        assert not resumed
        stdout, stderr, end = await _collect(attachment)
        assert (stdout, stderr) == (b"out\n", b"error\n")
        assert end == Exited(exit_code=9, oom_killed=False, stdout_length=4, stderr_length=6)


async def test_a_signal_is_an_exit_code() -> None:
    """A command ended by a signal ends with 128 and the signal."""
    async with _sessions() as sessions:
        attachment, _ = await sessions.open(_opening("exec sleep 1000"))
        attachment.session.send_signal(15)
        assert (await _collect(attachment))[2].exit_code == 143


async def test_much_data_goes_both_ways_byte_exact() -> None:
    """Sixteen megabytes through cat come back as they were, in bounded memory."""
    data = hashlib.shake_128(b"both ways").digest(16 << 20)
    async with _sessions() as sessions:
        attachment, _ = await sessions.open(_opening("exec cat"))

        async def send() -> None:
            for start in range(0, len(data), 64 << 10):
                await attachment.session.accept_input(start, data[start : start + (64 << 10)], eof=False)
            await attachment.session.accept_input(len(data), b"", eof=True)

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            stdout, _, end = await _collect(attachment)
        assert stdout == data
        assert end.exit_code == 0


async def test_the_command_waits_while_its_output_does_not_arrive() -> None:
    """Unacknowledged output stops at its bound and goes on with the acknowledgement."""
    async with _sessions() as sessions:
        attachment, _ = await sessions.open(_opening("head -c 3000000 /dev/zero"))
        buffer = attachment.session._buffers[Stream.STDOUT]
        await until(lambda: buffer.room == 0)
        assert buffer.end == CAPACITY
        assert not attachment.session.finished
        stdout, _, _ = await _collect(attachment)
        assert len(stdout) == 3_000_000


async def test_a_lost_stream_loses_nothing() -> None:
    """A second stream goes on from the byte it wants, with input where it stopped; the command runs once."""
    async with _sessions() as sessions:
        first, _ = await sessions.open(_opening("echo begun; read line; echo got $line; read line; echo and $line"))
        async for frame in first.frames():
            if isinstance(frame, Output):
                assert frame.data == b"begun\n"
                break
        await first.session.accept_input(0, b"one\n", eof=False)
        first.close()
        second, resumed = await sessions.open(_opening("echo never", resume=True, stdout_offset=3))
        assert resumed
        assert second.session.input_offset == 4
        await second.session.accept_input(2, b"e\ntwo\n", eof=True)
        got = b""
        async for frame in second.frames():
            if isinstance(frame, Output):
                assert frame.offset == 3 + len(got)
                got += frame.data
        assert got == b"un\ngot one\nand two\n"


async def test_what_has_arrived_cannot_be_had_again() -> None:
    """An acknowledged byte is gone, and asking for it says which are there."""
    async with _sessions() as sessions:
        first, _ = await sessions.open(_opening("echo hello; read line"))
        await until(lambda: first.session._buffers[Stream.STDOUT].end == 6)
        first.session.acknowledge(4, 0)
        for offset in (3, 7):
            with pytest.raises(ExecOffsetGone, match="4 to 6"):
                await sessions.open(_opening("", resume=True, stdout_offset=offset))


async def test_a_later_stream_takes_over() -> None:
    """The earlier stream ends with ExecAttachedElsewhere, and its detaching does not harm the later one."""
    async with _sessions() as sessions:
        first, _ = await sessions.open(_opening("read line; echo $line"))
        async with asyncio.TaskGroup() as group:
            ended = group.create_task(_expect_taken_over(first))
            second, _ = await sessions.open(_opening(""))
            await ended
        first.close()
        await second.session.accept_input(0, b"still here\n", eof=True)
        assert (await _collect(second))[0] == b"still here\n"


async def _expect_taken_over(attachment: Attachment) -> None:
    with pytest.raises(ExecAttachedElsewhere):
        await _collect(attachment)


async def test_input_is_told_when_the_command_has_it() -> None:
    """Acknowledgements of input name what was written to the command."""
    async with _sessions() as sessions:
        attachment, _ = await sessions.open(_opening("cat >/dev/null"))
        await attachment.session.accept_input(0, b"abc", eof=True)
        offsets = [frame.offset async for frame in attachment.frames() if isinstance(frame, InputTaken)]
        assert offsets[-1] == 3
        with pytest.raises(ExecOffsetGone, match="gap"):
            await attachment.session.accept_input(9, b"x", eof=False)


async def test_a_command_left_alone_is_hung_up_and_killed() -> None:
    """SIGHUP comes first, SIGKILL to all it started next, when no stream is attached for long enough."""
    # A busy machine may not let the command say in a second that it was hung up.
    for hangup in (1.0, 10.0, 60.0):
        if await _said_when_left_alone(hangup) == (b"ready", {b"hup"}):
            return
    pytest.fail("it was killed without being hung up first")


async def _said_when_left_alone(hangup: float) -> tuple[bytes, set[bytes]]:
    """Leave a command alone until it is killed and forgotten, and return its first line, and what the others say."""
    async with _sessions(Patience(detached=0.05, hangup=hangup, finished=0.0)) as sessions:
        script = "trap 'echo hup' HUP; echo ready; while :; do sleep 0.01; done"
        attachment, _ = await sessions.open(_opening(script))
        session = attachment.session
        await until(lambda: session._buffers[Stream.STDOUT].end >= 6)
        attachment.close()
        await until(lambda: session.finished, within=hangup + 20)
        assert session._exited is not None
        assert session._exited.exit_code == 137
        # A child that the shell has just forked may still carry its trap, and say it too.
        first, *others = bytes(session._buffers[Stream.STDOUT]._data).splitlines()
        await until(lambda: not sessions._entries)
        with pytest.raises(ExecNotFound):
            await sessions.open(_opening("", resume=True))
    return first, set(others)


async def test_who_comes_back_at_the_last_moment_finds_the_command() -> None:
    """A stream that is attached when the time is just over, but before anybody looked, keeps its command."""
    async with _sessions(Patience(detached=0.05)) as sessions:
        first, _ = await sessions.open(_opening("exec cat"))
        first.close()
        for _ in range(10):
            await asyncio.sleep(0)  # lets the session begin to count
        time.sleep(0.1)  # noqa: ASYNC251  # nobody looks at the time meanwhile
        second = first.session.attach(0, 0)
        await second.session.accept_input(0, b"still here", eof=False)
        await until(lambda: second.session._buffers[Stream.STDOUT].end == len(b"still here"))
        await second.session.accept_input(len(b"still here"), b"", eof=True)
        stdout, _, end = await _collect(second)
        assert (stdout, end.exit_code) == (b"still here", 0)


async def test_who_is_left_behind_is_not_waited_for() -> None:
    """A command that ends while its child keeps the output open has ended."""
    async with _sessions() as sessions:
        attachment, _ = await sessions.open(_opening("sleep 1000 & echo mine; kill -0 $! && echo $!"))
        stdout, _, end = await _collect(attachment)
        assert stdout.startswith(b"mine\n")
        assert end.exit_code == 0
        os.kill(int(stdout.split()[1]), 9)


async def test_a_terminal_has_a_size_and_an_end_of_input() -> None:
    """A command on a terminal sees one, its resize, and the end of its input."""
    async with _sessions() as sessions:
        script = "tty >/dev/null && stty size; read line; stty size; cat; echo end"
        attachment, _ = await sessions.open(_opening(script, terminal=Terminal(rows=30, columns=100)))
        await until(lambda: b"30 100" in attachment.session._buffers[Stream.STDOUT]._data)
        attachment.session.resize(Terminal(rows=40, columns=120))
        await attachment.session.accept_input(0, b"go\n", eof=False)
        await until(lambda: b"40 120" in attachment.session._buffers[Stream.STDOUT]._data)
        await attachment.session.accept_input(3, b"", eof=True)
        stdout, _, end = await _collect(attachment)
        assert stdout.endswith(b"end\r\n")
        assert end.exit_code == 0


async def test_a_command_that_cannot_start_is_forgotten() -> None:
    """The refusal says why, and the id is free for another try."""
    async with _sessions() as sessions:
        opening = _opening("", command=Command(argv=("/nowhere",)))
        with pytest.raises(ExecStartFailed, match="No such file"):
            await sessions.open(opening)
        await until(lambda: not sessions._entries)
        attachment, resumed = await sessions.open(_opening("true"))
        assert not resumed
        assert (await _collect(attachment))[2].exit_code == 0


async def test_an_id_belongs_to_one_container() -> None:
    """The id of a command in one container does not lead there from another name."""
    async with _sessions() as sessions:
        await sessions.open(_opening("read line"))
        with pytest.raises(InvalidRequest, match="container live"):
            await sessions.open(_opening("", container_name="dev"))


async def test_there_is_an_end_to_the_commands() -> None:
    """One more than the bound is refused while they run."""
    async with _sessions() as sessions:
        for number in range(MAX_RUNNING):
            await sessions.open(_opening("read line", exec_id=str(number)))
        with pytest.raises(TooManyExecs):
            await sessions.open(_opening("read line", exec_id="one more"))


async def test_nothing_runs_in_a_stopped_container() -> None:
    """A command needs a running container, and the refusal names its state."""
    async with local_cell() as cell:
        await cell.start("live", 1, ContainerSpec(image=IMAGE, argv=("/bin/sleep", "1000")))
        await cell.containers.stop("live")
        sessions = Sessions(cell.containers, cell.group)
        with pytest.raises(ContainerNotRunning, match="STOPPED"):
            await sessions.open(_opening("true"))


async def test_a_fault_of_ours_ends_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    """An error nobody foresaw refuses the command, is on the console, and leaves the others and the agent alone."""
    async with _sessions() as sessions:
        attachment, _ = await sessions.open(_opening("read line; echo $line"))
        with pytest.raises(ExecStartFailed, match="fault of the agent"):
            await sessions.open(_opening("", exec_id="other", command=Command(argv=(5,))))  # type: ignore[arg-type]
        await attachment.session.accept_input(0, b"alive\n", eof=True)
        assert (await _collect(attachment))[0] == b"alive\n"
    assert "TypeError" in capsys.readouterr().err
