"""Commands in the containers of a real guest: every byte arrives, whatever happens to the streams that carry it."""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
import sys

import pytest

from cellmesh.api.common.v1 import container_pb2, exec_pb2
from cellmesh.mesh.errors import MeshError
from support.cell import Cell
from support.commands import ExecStream
from support.terminal import on_terminal

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module")]

HUNDRED_MB = 100_000_000
LINES = 150_000
TERMINALS = 24
"""Started at once: set after the start, the size came too late for twenty of them; set by crun alone, for three."""


def noise(size: int) -> bytes:
    """Return bytes without a pattern, the same each time."""
    return random.Random(size).randbytes(size)  # noqa: S311  # nothing here is a secret


async def test_a_hundred_megabytes_go_in_and_come_out(cell: Cell) -> None:
    """Prove that standard input and output carry 100 MB each, byte for byte."""
    data = noise(HUNDRED_MB)
    ended = await cell.live.run("cat", stdin=data)
    assert (ended.exit_code, len(ended.stdout)) == (0, HUNDRED_MB)
    assert hashlib.sha256(ended.stdout).digest() == hashlib.sha256(data).digest()
    assert ended.stderr == b""


async def test_output_resumes_where_a_broken_stream_left_it(cell: Cell) -> None:
    """Prove that a command whose stream breaks again and again says everything once, to a reader who keeps offsets."""
    opening = cell.dev.opening("seq", str(LINES))
    wanted = "".join(f"{number}\n" for number in range(1, LINES + 1)).encode()
    got, breaks = b"", 0
    while len(got) < len(wanted):
        async with ExecStream(cell.it, opening) as stream:
            opened = await stream.read()
            assert opened.opened.resumed is (breaks > 0)
            got += await stream.read_output(min(200_000, len(wanted) - len(got)))
        breaks += 1
        opening.resume, opening.stdout_offset = True, len(got)
    assert got == wanted
    assert breaks > 3


async def test_input_resumes_where_a_broken_stream_left_it(cell: Cell) -> None:
    """Prove that input sent again after a break is not taken twice, and that the answer says from where to send."""
    data = noise(300_000)
    opening = cell.dev.opening("sha256sum")
    async with ExecStream(cell.it, opening) as stream:
        await stream.read()
        for begin in range(0, 150_000, 50_000):
            stream.send(stdin=exec_pb2.ExecStdin(offset=begin, data=data[begin : begin + 50_000]))
        while (answer := await stream.read()).stdin_ack.offset < 100_000:
            assert answer.HasField("stdin_ack")
    opening.resume = True
    async with ExecStream(cell.it, opening) as stream:
        arrived = (await stream.read()).opened.stdin_offset
        assert arrived >= 100_000
        stream.send(stdin=exec_pb2.ExecStdin(offset=arrived - 40_000, data=data[arrived - 40_000 : arrived]))
        for begin in range(arrived, len(data), 50_000):
            stream.send(stdin=exec_pb2.ExecStdin(offset=begin, data=data[begin : begin + 50_000]))
        stream.send(stdin=exec_pb2.ExecStdin(offset=len(data), eof=True))
        assert (await stream.read_until(b"\n")).split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_a_later_stream_takes_a_command_over(cell: Cell) -> None:
    """Prove that the earlier stream hears of it, and that what was acknowledged cannot be asked for again."""
    opening = cell.dev.opening("sh", "-c", "echo first; read line; echo $line")
    async with ExecStream(cell.it, opening) as first:
        await first.read()
        assert await first.read_output(6) == b"first\n"
        opening.resume, opening.stdout_offset = True, 6
        async with ExecStream(cell.it, opening) as second:
            assert (await second.read()).opened.resumed
            with pytest.raises(MeshError) as taken:
                await first.read()
            assert taken.value.reason == "EXEC_ATTACHED_ELSEWHERE"
            opening.stdout_offset = 0
            async with ExecStream(cell.it, opening) as third:
                with pytest.raises(MeshError) as gone:
                    await third.read()
            assert gone.value.reason == "EXEC_OFFSET_GONE"
            second.send(stdin=exec_pb2.ExecStdin(data=b"second\n", eof=True))
            assert await second.read_output(7) == b"second\n"
            assert await second.read_exited() == exec_pb2.ExecExited(stdout_length=13)


async def test_no_command_sees_its_terminal_before_the_size_is_set(cell: Cell) -> None:
    """Prove that commands that ask at once, many beside each other, are all told the size they were started with."""

    async def ask(rows: int) -> str:
        size = exec_pb2.TerminalSize(rows=rows, columns=101)
        return (await cell.live.run("stty", "size", tty=True, size=size)).text

    async with asyncio.TaskGroup() as group:
        asked = {rows: group.create_task(ask(rows)) for rows in range(30, 30 + TERMINALS)}
    assert {rows: task.result() for rows, task in asked.items()} == {rows: f"{rows} 101" for rows in asked}


async def test_a_program_in_a_lasting_directory_has_its_size_too(cell: Cell) -> None:
    """Prove that a command on a terminal starts where its program is on a file system of its own."""
    lasting = [container_pb2.PersistentPath(path="/app/keep")]
    async with cell.running("lasting", "sleep", "86400", persistent_paths=lasting) as box:
        await box.shell("cp $(which stty) /app/keep/stty")
        size = exec_pb2.TerminalSize(rows=33, columns=101)
        assert (await box.run("/app/keep/stty", "size", tty=True, size=size)).text == "33 101"


async def test_a_terminal_has_the_size_it_is_told(cell: Cell) -> None:
    """Prove that a command on a terminal sees its size and each new one, echoes input and is interrupted by Ctrl-C."""
    # The traps come first: what is sent after the size was said meets them.
    script = "trap 'stty size' WINCH; trap 'exit 42' INT; stty size; while true; do sleep 0.1; done"
    size = exec_pb2.TerminalSize(rows=33, columns=101)
    async with ExecStream(cell.it, cell.live.opening("sh", "-c", script, tty=True, size=size)) as stream:
        await stream.read()
        await stream.read_until(b"33 101\r\n")
        stream.send(resize=exec_pb2.TerminalSize(rows=44, columns=202))
        await stream.read_until(b"44 202\r\n")
        stream.send(stdin=exec_pb2.ExecStdin(data=b"\x03"))
        assert (await stream.read_exited()).exit_code == 42


async def test_a_person_works_in_a_shell(cell: Cell) -> None:
    """Prove that `cellmesh exec -it` is a terminal: keys, window, Ctrl-C, exit code, and the person's own restored."""
    command = (sys.executable, "-m", "cellmesh.cli", "exec", "-it", f"{cell.vm_id}/sandbox-dev", "--", "sh")
    async with on_terminal(*command, environment=cell.it.environment(), rows=30, columns=90) as terminal:
        await terminal.read_until(b"$ ")
        assert terminal.modes != terminal.first_modes
        terminal.type(b"stty size\r")
        await terminal.read_until(b"30 90\r\n")
        terminal.resize(40, 120)
        terminal.type(b"until [ \"$(stty size)\" = '40 120' ]; do sleep 0.1; done; echo $((6 * 7)); cat\r")
        await terminal.read_until(b"\r\n42\r\n")
        # Once it answers it is what the terminal interrupts; before, that is the shell, or for a moment nobody.
        terminal.type(b"meow\r")
        await terminal.read_until(b"meow\r\nmeow\r\n")
        terminal.type(b"\x03")
        await terminal.read_until(b"$ ")
        terminal.type(b"exit 7\r")
        assert await terminal.ended() == 7
        assert terminal.modes == terminal.first_modes


async def test_a_command_ends_as_it_would_here(cell: Cell) -> None:
    """Prove that exit codes, signals, outputs, directory and environment are the command's own."""
    variable = {"name": "GREETING", "value": "hallo"}
    ended = await cell.live.run(
        "sh", "-c", "pwd; echo $GREETING >&2; exit 7", working_dir="/tmp", environment=[variable]
    )
    assert (ended.exit_code, ended.stdout, ended.stderr) == (7, b"/tmp\n", b"hallo\n")
    async with ExecStream(cell.it, cell.live.opening("sh", "-c", "echo up; exec sleep 86400")) as stream:
        await stream.read()
        await stream.read_until(b"up\n")
        stream.send(signal=exec_pb2.ExecSignal(number=signal.SIGTERM))
        assert (await stream.read_exited()).exit_code == 128 + signal.SIGTERM


async def test_a_command_that_cannot_run_says_why(cell: Cell) -> None:
    """Prove that a program that is not there, a command nobody started and a stopped container are told apart."""
    reasons = {}
    unknown = cell.live.opening("true", resume=True)
    nowhere = cell.live.opening("true")
    nowhere.container_name = "nobody"
    for name, opening in {
        "program": cell.live.opening("/no/such/program"),
        "command": unknown,
        "container": nowhere,
    }.items():
        async with ExecStream(cell.it, opening) as stream:
            with pytest.raises(MeshError) as error:
                await stream.read()
        reasons[name] = error.value.reason
    assert reasons == {
        "program": "EXEC_START_FAILED",
        "command": "EXEC_NOT_FOUND",
        "container": "CONTAINER_NOT_FOUND",
    }


async def test_a_command_may_be_as_large_as_the_contract_says(cell: Cell) -> None:
    """Prove that arguments and variables at their limits, 252 KiB in all, reach the program whole."""
    tell = "import os, sys; print(*map(len, sys.argv[1:]), len(os.environ['V']))"
    variable = container_pb2.EnvironmentVariable(name="V", value="v" * 4096)
    sizes = [65_536, 65_536, 65_536, 56_000]
    argv = ["python3", "-c", tell, *("a" * size for size in sizes)]
    assert cell.live.opening(*argv, environment=[variable]).ByteSize() > 250 << 10
    told = await cell.live.run(*argv, environment=[variable])
    assert told.text.split() == [str(size) for size in (*sizes, 4096)]


async def test_a_command_is_never_run_twice(cell: Cell) -> None:
    """Prove that opening the same id again, as after a lost answer, comes back to the one command."""
    opening = cell.dev.opening("sh", "-c", "echo run >> /tmp/runs; read line")
    for resumed in (False, True):
        async with ExecStream(cell.it, opening) as stream:
            assert (await stream.read()).opened.resumed is resumed
    async with ExecStream(cell.it, opening) as stream:
        await stream.read()
        stream.send(stdin=exec_pb2.ExecStdin(data=b"\n", eof=True))
        await stream.read_exited()
    assert await cell.dev.shell("cat /tmp/runs") == "run"
