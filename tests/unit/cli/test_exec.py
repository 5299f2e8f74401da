"""`cellmesh exec` against a node whose streams break."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping

import pytest

from cellmesh.cli.commands.exec_ import _require_utf8
from cellmesh.cli.errors import UsageError
from cellmesh.cli.refusal import explain
from cellmesh.hypervisor.domain.errors import ExecStartFailed
from support.fake_node import FakeNode
from unit.cli.conftest import Cellmesh

_PATIENCE_SECONDS = 60


@pytest.fixture
def target(node: FakeNode) -> str:
    """Give the name of a container."""
    return f"{node.add_vm().vm_id}/sandbox-dev"


def run_bytes(
    environment: Mapping[str, str], *arguments: str, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run `cellmesh exec` with bytes in and out."""
    argv = [sys.executable, "-m", "cellmesh.cli", "exec", *arguments]
    return subprocess.run(
        argv, input=stdin, capture_output=True, env=environment, timeout=_PATIENCE_SECONDS, check=False
    )


def read_until(descriptor: int, wanted: bytes) -> bytes:
    """Read a terminal until it has shown `wanted`."""
    shown = b""
    while wanted not in shown:
        piece = os.read(descriptor, 4096)
        assert piece, shown
        shown += piece
    return shown


def test_exit_code_and_both_outputs_pass_through(target: str, cellmesh: Cellmesh) -> None:
    """The command's exit code, standard output and standard error are ours."""
    assert cellmesh("exec", target, "fail", "7").returncode == 7
    both = cellmesh("exec", target, "both")
    assert (both.stdout, both.stderr) == ("out\n", "err\n")


def test_options_after_the_container_are_the_commands(node: FakeNode, target: str, cellmesh: Cellmesh) -> None:
    """What stands after the container belongs to the command, with or without `--` before it."""
    assert cellmesh("exec", target, "fail", "4", "--json", "--user").returncode == 4
    assert cellmesh("exec", target, "--", "fail", "3").returncode == 3
    assert cellmesh("exec", target, "--").returncode == 2


@pytest.mark.parametrize("breaks", [[], [1], [2, 3, 1, 4], [0, 0, 1]])
def test_output_survives_broken_streams(
    breaks: list[int], node: FakeNode, target: str, environment: Mapping[str, str]
) -> None:
    """However often the stream breaks, even before the first answer, each byte arrives once and in order."""
    node.breaks = list(breaks)
    result = run_bytes(environment, target, "flood", "50000")
    assert result.returncode == 0
    assert result.stdout == bytes(index % 251 for index in range(50000))
    assert node.breaks == []
    assert len(node.commands) == 1


@pytest.mark.parametrize("breaks", [[], [3, 5, 2]])
def test_input_survives_broken_streams(
    breaks: list[int], node: FakeNode, target: str, environment: Mapping[str, str]
) -> None:
    """Piped input arrives whole, and its end too, whatever happens to the streams."""
    node.breaks = list(breaks)
    data = os.urandom(3_000_000)
    result = run_bytes(environment, "-i", target, "cat", stdin=data)
    assert result.returncode == 0
    assert result.stdout == data


def test_input_from_a_file(target: str, environment: Mapping[str, str]) -> None:
    """A regular file, which can't be waited for, is read as standard input."""
    with open(__file__, "rb") as source:  # noqa: PTH123  # its descriptor is what is wanted
        argv = [sys.executable, "-m", "cellmesh.cli", "exec", "-i", target, "cat"]
        result = subprocess.run(
            argv, stdin=source, capture_output=True, env=environment, timeout=_PATIENCE_SECONDS, check=True
        )
        source.seek(0)
        assert result.stdout == source.read()


def test_without_interactive_no_input_is_taken(node: FakeNode, target: str, environment: Mapping[str, str]) -> None:
    """Without -i the command finds its input empty and ours stays unread."""
    result = run_bytes(environment, target, "cat", stdin=b"for somebody else")
    assert (result.returncode, result.stdout) == (0, b"")


def test_a_command_that_was_lost_is_our_failure(node: FakeNode, target: str, cellmesh: Cellmesh) -> None:
    """When a resumed stream finds no command any more, the exit code is 125 and never the command's."""
    node.breaks = [1]
    node.forgets_commands = True
    result = cellmesh("exec", target, "trap")
    assert result.returncode == 125
    assert "ended long ago" in result.stderr


def test_a_signal_reaches_the_command(target: str, environment: Mapping[str, str]) -> None:
    """SIGTERM to us is SIGTERM to the command, and its exit code comes back."""
    argv = [sys.executable, "-m", "cellmesh.cli", "exec", target, "trap"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(_PATIENCE_SECONDS) == 128 + signal.SIGTERM


def test_a_closed_pipe_ends_the_command(node: FakeNode, target: str, environment: Mapping[str, str]) -> None:
    """When nobody reads our output any more, the command hears SIGPIPE instead of hanging."""
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "cellmesh.cli", "exec", target, "trap"]
    result = subprocess.run(argv, stdout=writer, env=environment, timeout=_PATIENCE_SECONDS, check=False)
    os.close(writer)
    assert result.returncode == 128 + signal.SIGPIPE
    assert next(iter(node.commands.values())).signals == [signal.SIGPIPE]


def test_a_terminal_gives_its_size_and_is_restored(node: FakeNode, target: str, environment: Mapping[str, str]) -> None:
    """With -it the command learns our terminal's size, then its new size; afterwards the terminal is as it was."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    before = termios.tcgetattr(theirs)
    argv = [sys.executable, "-m", "cellmesh.cli", "exec", "-it", target, "size"]
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        read_until(ours, b"30x100")
        assert not termios.tcgetattr(theirs)[3] & termios.ECHO
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        process.send_signal(signal.SIGWINCH)
        read_until(ours, b"40x120")
        assert process.wait(_PATIENCE_SECONDS) == 0
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_a_terminal_is_needed_for_one(target: str, cellmesh: Cellmesh) -> None:
    """-t without a terminal on standard input is a wrong usage, said before anything runs."""
    assert cellmesh("exec", "-t", target, "cat").returncode == 2


def test_ctrl_c_gives_up_while_nobody_answers(node: FakeNode, target: str, environment: Mapping[str, str]) -> None:
    """While the node is away, Ctrl-C is for us: the command line comes back with 130."""
    argv = [sys.executable, "-m", "cellmesh.cli", "exec", target, "trap"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        node.stop()
        assert b"Ctrl-C gives up" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(_PATIENCE_SECONDS) == 130


@pytest.mark.parametrize(("told", "code"), [("126", 126), ("127", 127)])
def test_a_program_that_cannot_run_ends_as_in_a_shell(told: str, code: int) -> None:
    """The exit code that the guest names is that of the command line."""
    found = explain(ExecStartFailed("it is not there", metadata={"exit_code": told}))
    assert found is not None
    assert found.exit_code == code


def test_a_text_that_is_not_utf8_is_named() -> None:
    """No traceback: the argument is in the message, with what to do."""
    with pytest.raises(UsageError, match=r"a\\xff.* is not UTF-8"):
        _require_utf8(["ls", os.fsdecode(b"a\xff")])
