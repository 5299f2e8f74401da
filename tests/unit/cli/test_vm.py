"""`cellmesh vm` against a node."""

from __future__ import annotations

import json
import uuid

import pytest

from cellmesh.api.hypervisor.v1 import vm_pb2, vm_service_pb2
from support.fake_node import FakeNode
from unit.cli.conftest import Cellmesh


def boot(node: FakeNode, vm: vm_pb2.Vm) -> None:
    """Let a VM boot at once."""
    vm.epoch += 1
    node.move(vm, vm_pb2.VM_STATE_STARTING)
    node.move(vm, vm_pb2.VM_STATE_RUNNING)


def test_list_reads_every_page(node: FakeNode, cellmesh: Cellmesh) -> None:
    """A list over several pages is complete and in the node's order."""
    ids = [node.add_vm().vm_id for _ in range(3)]
    listed = json.loads(cellmesh("vm", "ls", "--json").stdout)
    assert [vm["vm_id"] for vm in listed["vms"]] == ids


def test_plain_table_has_one_word_a_cell(node: FakeNode, cellmesh: Cellmesh) -> None:
    """Without a terminal a table can be split at blanks: header and rows have as many words."""
    node.add_vm()
    header, row = cellmesh("vm", "ls").stdout.splitlines()
    assert len(header.split()) == len(row.split())


@pytest.mark.parametrize("form", ["whole", "start", "user"])
def test_a_vm_is_found(form: str, node: FakeNode, cellmesh: Cellmesh) -> None:
    """A VM can be named by its id, the unique start of it, and its owner."""
    vm = node.add_vm(vm_id="aaaa1111-0000-4000-8000-000000000000")
    node.add_vm(vm_id="aaaa2222-0000-4000-8000-000000000000")
    named = {"whole": [vm.vm_id], "start": ["aaaa1"], "user": ["--user", vm.user_id]}[form]
    assert json.loads(cellmesh("vm", "show", *named, "--json").stdout)["vm"]["vm_id"] == vm.vm_id


def test_an_ambiguous_start_is_refused(node: FakeNode, cellmesh: Cellmesh) -> None:
    """A start that two VMs share names neither."""
    node.add_vm(vm_id="aaaa1111-0000-4000-8000-000000000000")
    node.add_vm(vm_id="aaaa2222-0000-4000-8000-000000000000")
    result = cellmesh("vm", "delete", "aaaa")
    assert result.returncode == 2
    assert node.requests == []


def test_create_waits_for_running(node: FakeNode, cellmesh: Cellmesh) -> None:
    """`create --wait` prints each state once, in order, and ends with the running VM."""
    node.after_mutation = lambda vm: boot(node, vm)
    result = cellmesh("vm", "create", "--wait", "--memory", "1G", "--vcpus", "2", "--cold-start", "never", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    states = [line["event"]["vm_state_changed"]["to"] for line in lines[:-1]]
    assert states == ["VM_STATE_STARTING", "VM_STATE_RUNNING"]
    assert all(line["elapsed_ms"] >= 0 for line in lines[:-1])
    assert lines[-1]["vm"]["state"] == "VM_STATE_RUNNING"
    request = node.requests[0]
    assert isinstance(request, vm_service_pb2.CreateVmRequest)
    assert (request.spec.memory_bytes, request.spec.vcpus) == (1 << 30, 2)
    assert request.spec.cold_start == vm_pb2.COLD_START_NEVER


def test_a_vm_that_fails_ends_the_wait(node: FakeNode, cellmesh: Cellmesh) -> None:
    """`--wait` ends with its own exit code and the node's sentence when the VM has failed."""
    vm = node.add_vm(vm_pb2.VM_STATE_STOPPED)
    node.after_mutation = lambda vm: node.move(vm, vm_pb2.VM_STATE_FAILED, "HELLO_TIMEOUT", "The guest is silent.")
    result = cellmesh("vm", "start", vm.vm_id, "--wait", "--json")
    error = json.loads(result.stderr)["error"]
    assert result.returncode == 9
    assert (error["reason"], error["message"]) == ("HELLO_TIMEOUT", "The guest is silent.")


def test_wait_gives_up_in_time(node: FakeNode, cellmesh: Cellmesh) -> None:
    """`--timeout` bounds a wait for something that does not come."""
    vm = node.add_vm(vm_pb2.VM_STATE_STOPPED)
    assert cellmesh("vm", "start", vm.vm_id, "--wait", "--timeout", "300ms").returncode == 8


def test_recycle_waits_for_the_new_epoch(node: FakeNode, cellmesh: Cellmesh) -> None:
    """A recycle is done when the VM runs in a later epoch, not because it runs already."""
    vm = node.add_vm()
    node.after_mutation = lambda vm: boot(node, vm)
    result = cellmesh("vm", "recycle", vm.vm_id, "--wait", "--json")
    assert json.loads(result.stdout.splitlines()[-1])["vm"]["epoch"] == "2"
    assert len(result.stdout.splitlines()) == 3


def test_start_of_a_running_vm_is_done_at_once(node: FakeNode, cellmesh: Cellmesh) -> None:
    """`start --wait` of a VM that runs waits for nothing."""
    vm = node.add_vm()
    assert cellmesh("vm", "start", vm.vm_id, "--wait", "--timeout", "20s").returncode == 0


def test_delete_waits_until_it_is_gone(node: FakeNode, cellmesh: Cellmesh) -> None:
    """`delete --wait --force` passes the force on and ends with DELETED."""
    vm = node.add_vm(vm_pb2.VM_STATE_QUARANTINED)
    node.after_mutation = lambda vm: node.move(vm, vm_pb2.VM_STATE_DELETED)
    result = cellmesh("vm", "delete", vm.vm_id, "--wait", "--force")
    request = node.requests[0]
    assert isinstance(request, vm_service_pb2.DeleteVmRequest)
    assert request.force
    assert f"{vm.vm_id} is gone." in result.stdout


def test_a_retry_keeps_its_request_id(node: FakeNode, cellmesh: Cellmesh) -> None:
    """A mutation whose answer was lost is sent again with the same request_id."""
    node.unavailable_once.add("CreateVm")
    assert cellmesh("vm", "create", "--user", str(uuid.uuid4())).returncode == 0
    ids = [request.request_id for request in node.requests if isinstance(request, vm_service_pb2.CreateVmRequest)]
    assert len(ids) == 2
    assert ids[0] == ids[1]


def test_health_is_the_exit_code(node: FakeNode, cellmesh: Cellmesh) -> None:
    """`health` ends with 0 for a VM that is well and 1 for one that is not."""
    assert cellmesh("vm", "health", node.add_vm().vm_id).returncode == 0
    assert cellmesh("vm", "health", node.add_vm(vm_pb2.VM_STATE_FAILED).vm_id).returncode == 1


def test_what_a_guest_says_cannot_drive_the_terminal(node: FakeNode, cellmesh: Cellmesh) -> None:
    """Controls, bidi marks and markup in a message are printed, not obeyed."""
    vm = node.add_vm(message="\x1b[2J[red]x[/red]\u202e\nforged: line")
    shown = cellmesh("vm", "show", vm.vm_id).stdout
    assert "\\x1b[2J[red]x[/red]\\u202e\\nforged: line" in shown
    assert "\x1b" not in shown
