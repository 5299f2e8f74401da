"""Every command with standard streams that are closed, full or broken: its own exit code, and never a traceback."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cellmesh.api.hypervisor.v1 import vm_pb2
from support.fake_node import FakeNode, environment_of

VM_ID = "aaaa1111-0000-4000-8000-000000000000"
SECONDS = 240.0

COMMANDS: Mapping[str, list[str]] = {
    "version": ["--version"],
    "vm ls": ["vm", "ls"],
    "vm ls as JSON": ["vm", "ls", "--json"],
    "vm show": ["vm", "show", VM_ID],
    "vm health": ["vm", "health", VM_ID],
    "container ls": ["container", "ls", VM_ID],
    "container show": ["container", "show", f"{VM_ID}/sandbox-live"],
    "route ls": ["route", "ls", VM_ID],
    "logs": ["logs", f"{VM_ID}/sandbox-live"],
    "events": ["events"],
    "node show": ["node", "show"],
    "doctor": ["doctor"],
    "image ls": ["image", "ls"],
    "a wrong command": ["vm", "lx"],
    "a missing VM": ["vm", "show", "bbbb"],
    "exec": ["exec", f"{VM_ID}/sandbox-live", "--", "flood", "5"],
    "exec with input": ["exec", "-i", f"{VM_ID}/sandbox-live", "--", "cat"],
}
CLOSED = ((0,), (1,), (2,), (0, 1, 2))


class Stage:
    """A node with a VM, events and a log, so that each command has something to print; and what each does as a rule."""

    def __init__(self, directory: Path) -> None:
        self.environment = environment_of(directory / "run", directory)
        self._usual: dict[str, subprocess.CompletedProcess[bytes]] = {}

    def usual(self, name: str) -> subprocess.CompletedProcess[bytes]:
        """Return what a command did with all streams open."""
        if name not in self._usual:
            self._usual[name] = run(COMMANDS[name], self.environment)
        return self._usual[name]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Give one node to all commands, which only read it."""
    directory = tmp_path_factory.mktemp("s")
    (directory / "run").mkdir()
    node = FakeNode()
    node.start(directory / "run" / "operator.sock")
    node.add_vm(vm_id=VM_ID)
    node.log = b"a line\n"
    yield Stage(directory)
    node.stop()


def run(
    arguments: list[str],
    environment: Mapping[str, str],
    stdout: int | None = subprocess.PIPE,
    stderr: int | None = subprocess.PIPE,
    closed: tuple[int, ...] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end; a shell closes descriptors, as a fork of this process would fork its gRPC too."""
    program = " ".join(['exec "$@"', *(f"{descriptor}>&-" for descriptor in closed)])
    argv = ["sh", "-c", program, "sh", sys.executable, "-m", "cellmesh.cli", *arguments]
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env={**environment},
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_closed_stream_changes_nothing(name: str, stage: Stage) -> None:
    """The exit code and what comes out of the open streams are those of a run with all of them open."""
    wanted = stage.usual(name)
    assert b"Traceback" not in wanted.stderr
    for closed in CLOSED:
        seen = run(COMMANDS[name], stage.environment, closed=closed)
        assert seen.returncode == wanted.returncode, (closed, seen.stderr)
        assert b"Traceback" not in seen.stderr
        if 2 not in closed:
            assert len(seen.stderr.splitlines()) == len(wanted.stderr.splitlines())
        if 1 not in closed:
            assert len(seen.stdout.splitlines()) == len(wanted.stdout.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line(name: str, stage: Stage) -> None:
    """A command with something to print says once that it was lost, with a code of its own; others are as ever."""
    wanted = stage.usual(name)
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        seen = run(COMMANDS[name], stage.environment, stdout=full.fileno())
    if not wanted.stdout:
        assert (seen.returncode, seen.stderr) == (wanted.returncode, wanted.stderr)
        return
    assert seen.returncode == (125 if name.startswith("exec") else 74), seen.stderr
    assert seen.stderr.count(b"\n") == 1
    assert b"Standard output could not be written: No space left on device." in seen.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_standard_error_changes_no_exit_code(name: str, stage: Stage) -> None:
    """Where errors can't be told, the exit code still tells them."""
    wanted = stage.usual(name)
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        seen = run(COMMANDS[name], stage.environment, stderr=full.fileno())
    assert seen.returncode == wanted.returncode
    assert len(seen.stdout.splitlines()) == len(wanted.stdout.splitlines())


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "version"])
def test_a_reader_that_is_gone_is_no_failure(name: str, stage: Stage) -> None:
    """`| head` has seen enough: silence."""
    wanted = stage.usual(name)
    reader, writer = os.pipe()
    os.close(reader)
    seen = run(COMMANDS[name], stage.environment, stdout=writer)
    os.close(writer)
    assert seen.returncode in {wanted.returncode, 0}, seen.stderr
    assert seen.stderr == wanted.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_that_lacks_a_letter_shows_its_escape(
    encoding: str, node: FakeNode, environment: Mapping[str, str]
) -> None:
    """Text that the locale can't show comes out as escapes."""
    seen = run(["vm", "show", "\u0142\u00f3d\u017a"], {**environment, "PYTHONIOENCODING": encoding})
    assert seen.returncode == 2
    assert b"Traceback" not in seen.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["vm", "show", "\udcff"],
        ["vm", "create", "--user", "\udcff"],
        ["container", "start", f"{VM_ID}/x", "--image", "\udcff"],
        ["container", "start", f"{VM_ID}/x", "--image", "sha256:" + "0" * 64, "--env", "A=\udcff"],
        ["logs", f"{VM_ID}/\udcff"],
        ["route", "switch", VM_ID, "/\udcff", "sandbox-dev"],
        ["events", "\udcff"],
        ["exec", f"{VM_ID}/sandbox-live", "--", "echo", "\udcff"],
    ],
)
def test_an_argument_that_is_not_utf8_is_a_wrong_usage(arguments: list[str], stage: Stage) -> None:
    """It can't be said to the node, and the command says so."""
    seen = run(arguments, stage.environment)
    assert b"Traceback" not in seen.stderr
    assert seen.returncode == 2, seen.stderr
    assert seen.stderr.startswith(b"error: ")


def test_a_pipe_left_non_blocking_gets_everything(node: FakeNode, environment: Mapping[str, str]) -> None:
    """A parent may share a pipe that does not block: the command waits for room, and loses nothing."""
    for number in range(3000):
        node.add_vm(vm_pb2.VM_STATE_RUNNING, vm_id=f"{number:08x}-0000-4000-8000-000000000000")
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
    lines: list[bytes] = []

    def read() -> None:
        with os.fdopen(reader, "rb") as pipe:
            lines.extend(pipe.readlines())

    reading = threading.Thread(target=read)
    reading.start()
    seen = run(["vm", "ls"], environment, stdout=writer)
    os.close(writer)
    reading.join()
    assert seen.returncode == 0, seen.stderr
    assert len(lines) == 3001


def test_without_the_streams_a_full_disk_is_a_traceback(stage: Stage) -> None:
    """Control: with Python's own streams the same command ends in a traceback."""
    program = "import sys; from cellmesh.cli import __main__, streams; streams.prepare = lambda: None; "
    program += "sys.exit(__main__.main())"
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        seen = subprocess.run(
            [sys.executable, "-c", program, "vm", "ls"],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            env={**stage.environment},
            timeout=SECONDS,
            check=False,
        )
    assert b"Traceback" in seen.stderr
