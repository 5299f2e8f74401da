"""What the command says when something is wrong, and how it starts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.fake_node import FakeNode
from unit.cli.conftest import Cellmesh


def test_without_a_node_the_way_out_is_named(cellmesh: Cellmesh) -> None:
    """Two lines: what happened, and the command that helps; the exit code says that nothing answers."""
    result = cellmesh("vm", "ls")
    what, fix = result.stderr.splitlines()
    assert "no operator socket" in what
    assert "cellmesh up" in fix
    assert result.returncode == 4


def test_a_socket_nobody_listens_on_is_unavailable(run_dir: Path, cellmesh: Cellmesh) -> None:
    """A socket that a killed node left behind is told apart from a fault of this command."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(run_dir / "operator.sock"))
    result = cellmesh("node", "show", "--json")
    assert result.returncode == 4
    assert json.loads(result.stderr)["error"]["exit_code"] == 4


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["vm", "show", "--user", "00000000-0000-4000-8000-000000000000"], 3, "VM_NOT_FOUND"),
        (["container", "show", "aaaa1111-0000-4000-8000-000000000000/none"], 3, "CONTAINER_NOT_FOUND"),
        (["vm", "create", "--user", "00000000-0000-4000-8000-00000000000a"], 5, "VM_ALREADY_EXISTS"),
        (["vm", "show"], 2, "USAGE"),
        (["vm", "show", "x y"], 2, "USAGE"),
        (["vm", "create", "--user", "bob"], 2, "USAGE"),
        (["vm", "create", "--memory", "much"], 2, "USAGE"),
        (["vm", "start", "aaaa1111", "--wait", "--timeout", "soon"], 2, "USAGE"),
        (["container", "start", "aaaa1111/x", "--image", "nope!"], 2, "USAGE"),
        (["container", "show", "none"], 2, "USAGE"),
        (["image", "show", "abcd"], 3, "IMAGE_NOT_FOUND"),
        (["image", "import", "/nonexistent"], 3, "PATH_NOT_FOUND"),
        (["image", "default"], 3, "NO_DEFAULT_IMAGE"),
        (["vm", "lx"], 2, "USAGE"),
        (["vm", "ls", "--nope"], 2, "USAGE"),
    ],
)
def test_every_failure_has_its_code_and_reason(
    arguments: list[str], code: int, reason: str, node: FakeNode, cellmesh: Cellmesh
) -> None:
    """With --json a failure is one object on standard error, and nothing is on standard output."""
    node.add_vm(vm_id="aaaa1111-0000-4000-8000-000000000000", user_id="00000000-0000-4000-8000-00000000000a")
    result = cellmesh(*arguments, "--json")
    error = json.loads(result.stderr)["error"]
    assert (result.returncode, error["reason"]) == (code, reason)
    assert error["fix"]
    assert result.stdout == ""


def test_a_reader_that_has_seen_enough_is_no_failure(node: FakeNode, environment: Mapping[str, str]) -> None:
    """`cellmesh … | head` ends quietly."""
    node.add_vm()
    argv = [sys.executable, "-m", "cellmesh.cli", "vm", "ls"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


@pytest.mark.parametrize("arguments", [["--help"], ["vm", "--help"], ["exec", "--help"], ["doctor", "--help"]])
def test_help_starts_without_the_heavy_libraries(arguments: list[str]) -> None:
    """Help imports neither gRPC, rich nor OpenTelemetry: that is what keeps it quick (pydantic is typer's own)."""
    program = (
        "import sys; from cellmesh.cli.__main__ import main; main(sys.argv[1:]); "
        "print(sorted({'grpc', 'rich', 'opentelemetry', 'protovalidate'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_options_name_another_node(node: FakeNode, run_dir: Path, environment: Mapping[str, str]) -> None:
    """--run-dir and --socket go before the environment."""
    elsewhere = {**environment, "CELLMESH_RUN_DIR": "/nonexistent"}
    argv = [sys.executable, "-m", "cellmesh.cli"]
    for option in (["--run-dir", str(run_dir)], ["--socket", str(run_dir / "operator.sock")]):
        subprocess.run([*argv, *option, "node", "show"], env=elsewhere, check=True, capture_output=True)


def test_node_is_shown_and_drained(node: FakeNode, cellmesh: Cellmesh) -> None:
    """`node drain` stops new VMs and `--off` takes them again; warnings of the node are shown, escaped."""
    assert "\\x1b[31m" in cellmesh("node", "show").stdout
    cellmesh("node", "drain")
    assert node.draining
    cellmesh("node", "drain", "--off")
    assert not node.draining
