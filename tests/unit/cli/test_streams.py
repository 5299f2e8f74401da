"""`cellmesh logs`, `events` and `vm watch` against a node whose streams break."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Mapping

from cellmesh.api.common.v1 import exec_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2, event_pb2, vm_pb2
from support.fake_node import FakeNode
from unit.cli.conftest import Cellmesh


def test_logs_resume_by_offset(node: FakeNode, cellmesh: Cellmesh) -> None:
    """A log stream that breaks twice prints each byte once, and asks again for the same generation."""
    node.log = b"".join(f"line {number}\n".encode() for number in range(1000))
    node.breaks = [2, 1]
    result = cellmesh("logs", "-f", f"{node.add_vm().vm_id}/sandbox-live")
    assert result.stdout.encode() == node.log
    requests = [item for item in node.requests if isinstance(item, container_service_pb2.StreamLogsRequest)]
    assert [(request.offset, request.generation) for request in requests] == [(0, 0), (2000, 3), (3000, 3)]


def test_logs_keep_the_streams_apart(node: FakeNode, cellmesh: Cellmesh) -> None:
    """What a container wrote to standard error comes out of ours."""
    node.log, node.log_stream = b"bad\n", exec_pb2.OUTPUT_STREAM_STDERR
    result = cellmesh("logs", f"{node.add_vm().vm_id}/sandbox-live")
    assert (result.stdout, result.stderr) == ("", "bad\n")


def test_logs_on_a_terminal_are_escaped(node: FakeNode, environment: Mapping[str, str]) -> None:
    """On a terminal a container's escape sequences are shown; its newlines, tabs and letters stay."""
    node.log = "\x1b]0;owned\x07näh\tx\n".encode()
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "cellmesh.cli", "logs", f"{node.add_vm().vm_id}/sandbox-live"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:
            # A terminal without a far side answers EIO.
            pass
        assert process.wait(60) == 0
    os.close(ours)
    assert "\\x1b]0;owned\\x07näh" in shown.decode()
    assert b"\x1b" not in shown


def test_logs_as_json_are_one_object_a_line(node: FakeNode, cellmesh: Cellmesh) -> None:
    """With --json each chunk is an object with offset, stream and text, whatever the bytes."""
    node.log = b"\xff\n"
    line = json.loads(cellmesh("logs", f"{node.add_vm().vm_id}/sandbox-live", "--json").stdout)
    assert (line["offset"], line["stream"], line["text"]) == (0, "stdout", "\\xff\n")


def test_events_resume_by_token(node: FakeNode, environment: Mapping[str, str]) -> None:
    """An event stream that breaks goes on after the last event it printed, with none left out and none twice."""
    vm = node.add_vm(vm_pb2.VM_STATE_PENDING)
    for number in range(6):
        node.tell(event_pb2.Event(vm_id=vm.vm_id, anomaly=event_pb2.Anomaly(kind="X", message=str(number))))
    node.breaks = [2, 1]
    argv = [sys.executable, "-m", "cellmesh.cli", "events", "-f", "--from-beginning", "--json"]
    sequences = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            if "event" in message:
                sequences.append(int(message["event"]["sequence"]))
            if sequences and sequences[-1] == 6:
                break
        process.terminate()
    assert sequences == [1, 2, 3, 4, 5, 6]
    assert node.breaks == []


def test_events_list_ends(node: FakeNode, cellmesh: Cellmesh) -> None:
    """Without -f the events of every page are printed, oldest first, and that is all."""
    vm = node.add_vm(vm_pb2.VM_STATE_PENDING)
    node.move(vm, vm_pb2.VM_STATE_STARTING)
    node.move(vm, vm_pb2.VM_STATE_RUNNING)
    assert [line.split()[-1] for line in cellmesh("events").stdout.splitlines()] == ["STARTING", "RUNNING"]


def test_a_token_that_is_none_is_a_wrong_usage(node: FakeNode, cellmesh: Cellmesh) -> None:
    """A resume token that can't be one is refused before the node is asked."""
    assert cellmesh("events", "-f", "--resume-token", "%%%").returncode == 2


def test_watch_prints_what_is_and_what_comes(node: FakeNode, environment: Mapping[str, str]) -> None:
    """`vm watch` begins with the VM as it is and goes on with its changes."""
    vm = node.add_vm(vm_pb2.VM_STATE_PENDING)
    argv = [sys.executable, "-m", "cellmesh.cli", "vm", "watch", vm.vm_id, "--json"]
    states = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            states.append(message.get("vm", {}).get("state", "caught up"))
            if states[-1] == "caught up":
                node.move(vm, vm_pb2.VM_STATE_RUNNING)
            if states[-1] == "VM_STATE_RUNNING":
                break
        process.terminate()
    assert states == ["VM_STATE_PENDING", "caught up", "VM_STATE_RUNNING"]
