"""The API's states: what each action does where it is allowed and what it says where it is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conformance.vm import Vm

NO_VM = [
    ("GET", "vm.info", None, 404, ["The VM info is not available", "VM is not created"]),
    ("GET", "vm.counters", None, 500, ["The VM info is not available", "VM is not running"]),
    ("PUT", "vm.boot", None, 404, ["The VM could not boot", "VM config is missing"]),
    ("PUT", "vm.shutdown", None, 500, ["The VM could not shutdown", "VM is not running"]),
    ("PUT", "vm.pause", None, 500, ["The VM could not be paused", "VM is not running"]),
    ("PUT", "vm.resume", None, 500, ["The VM could not resume", "VM is not running"]),
    ("PUT", "vm.power-button", None, 500, ["Error triggering power button", "VM is not running"]),
    ("PUT", "vm.add-disk", {"path": "/nowhere"}, 404, ["The disk could not be added to the VM", "VM is not created"]),
    ("PUT", "vm.remove-device", {"id": "d"}, 404, ["The device could not be removed from the VM", "VM is not created"]),
]
MALFORMED = [
    ("PUT", "vmm.ping", b"", 400),
    ("GET", "vm.create", b"", 400),
    ("PUT", "vm.create", b"", 400),
    ("PUT", "vm.create", b"{", 400),
    ("PUT", "vm.create", b'{"memory": {"size": "much"}}', 400),
    ("PUT", "vm.create", b'{"disks": 5}', 400),
    ("PUT", "vm.create", b'{"payload": {"kernel": 5}}', 400),
    ("PUT", "vm.create", b'{"vsock": {"cid": 3}}', 400),
    ("PUT", "vm.create", b'{"console": {"mode": "Loud"}}', 400),
    ("PUT", "vm.boot", b"{}", 400),
    ("GET", "vm.nonsense", b"", 404),
    ("DELETE", "vm.info", b"", 400),
    ("PATCH", "vm.info", b"", 400),
]


@pytest.mark.parametrize(("method", "action", "body", "status", "causes"), NO_VM, ids=[row[1] for row in NO_VM])
def test_action_without_a_vm_says_so(
    vm: Vm, method: str, action: str, body: Any, status: int, causes: list[str]
) -> None:
    """Every action on nothing is refused with v53's status and causes."""
    answer = vm.api.exchange(method, action, body)
    assert (answer.status, answer.value) == (status, ["Error from API", *causes])
    assert answer.headers["server"] == "Cloud Hypervisor API"


@pytest.mark.parametrize(("method", "action", "body", "status"), MALFORMED)
def test_malformed_request_is_refused(vm: Vm, method: str, action: str, body: bytes, status: int) -> None:
    """What is no request is refused, and the process goes on."""
    assert vm.api.send(method, action, body).status == status
    assert vm.api.get("vmm.ping").status == 200


def test_delete_of_nothing_succeeds(vm: Vm) -> None:
    """Deleting no VM is no error, twice over."""
    assert [vm.api.put("vm.delete").status for _ in range(2)] == [204, 204]


def test_created_vm_is_shown_with_defaults(vm: Vm) -> None:
    """What is created comes back in vm.info with v53's defaults."""
    assert vm.api.put("vm.create", vm.config()).status == 204
    info = vm.api.get("vm.info").value
    assert info["state"] == "Created"
    assert info["memory_actual_size"] == info["config"]["memory"]["size"] == 256 << 20
    assert info["config"]["cpus"]["boot_vcpus"] == 1
    assert info["config"]["vsock"]["socket"] == str(vm.vsock)


def test_second_create_is_refused(vm: Vm) -> None:
    """There is one VM for a process."""
    assert vm.api.put("vm.create", vm.config()).status == 204
    answer = vm.api.put("vm.create", vm.config())
    assert (answer.status, answer.value[1:]) == (500, ["The VM could not be created", "VM is already created"])


def test_deleted_vm_makes_room_for_another(vm: Vm) -> None:
    """A process is used again after vm.delete."""
    assert vm.api.put("vm.create", vm.config()).status == 204
    assert vm.api.put("vm.delete").status == 204
    assert vm.api.get("vm.info").status == 404
    assert vm.api.put("vm.create", vm.config()).status == 204


@pytest.mark.parametrize(
    ("changes", "causes"),
    [
        ({"disks": [{"path": "/nowhere"}]}, ["Error from device manager", "Cannot open disk path"]),
        (
            {"disks": [{"readonly": True}]},
            ["Error from device manager", "No disk path was specified when one was expected"],
        ),
        ({"disks": [{"path": "/a", "id": "x"}, {"path": "/b", "id": "x"}]}, ["Failed to validate config"]),
        ({"payload": {"kernel": "/nowhere"}}, ["Cannot open kernel file"]),
        ({"payload": {"kernel": "/etc/passwd"}}, ["Cannot load the kernel into memory"]),
        ({"vsock": {"cid": 2, "socket": "/nowhere"}}, ["Failed to validate config", "2 is a special VSOCK CID"]),
        ({"vsock": {"cid": 3, "socket": "/nowhere/v"}}, ["Error from device manager"]),
        ({"cpus": {"boot_vcpus": 2, "max_vcpus": 1}}, ["Failed to validate config"]),
    ],
)
def test_failed_boot_leaves_a_created_vm(vm: Vm, changes: dict[str, Any], causes: list[str]) -> None:
    """A boot that fails says why, and the VM can be deleted and another one created."""
    assert vm.api.send("PUT", "vm.create", json.dumps(vm.config(**changes)).encode()).status == 204
    answer = vm.api.put("vm.boot")
    assert answer.status == 500
    assert answer.value[: 2 + len(causes)] == ["Error from API", "The VM could not boot", *causes]
    assert vm.api.send("GET", "vm.info").value["state"] == "Created"
    assert vm.api.put("vm.delete").status == 204
    assert vm.api.put("vm.create", vm.config()).status == 204


def test_half_booted_vm_takes_devices_and_a_button(vm: Vm) -> None:
    """A boot that failed at its kernel leaves a machine that takes everything and does nothing."""
    assert vm.api.put("vm.create", vm.config(payload={"kernel": "/etc/passwd"})).status == 204
    assert vm.api.put("vm.boot").status == 500
    assert vm.api.put("vm.power-button").status == 204
    assert vm.api.put("vm.add-disk", {"path": vm.disk("d.raw", b""), "id": "d", "image_type": "Raw"}).status == 200
    assert vm.api.put("vm.boot").value[-1] == "VM is already created"
    assert vm.api.put("vm.shutdown").status == 204
    assert vm.api.get("vm.info").value["state"] == "Created"


def test_stale_vsock_socket_fails_the_boot(vm: Vm) -> None:
    """A vsock socket that a crash left behind must be removed by whoever boots again."""
    vm.listening(1).close()
    (vm.directory / "vsock.sock_1").rename(vm.vsock)
    assert vm.api.put("vm.create", vm.config()).status == 204
    assert vm.api.put("vm.boot").value[-1] == "Address already in use (os error 98)"
    vm.vsock.unlink()
    assert vm.api.put("vm.boot").status == 204


def test_running_vm_is_not_booted_again(booted: Vm) -> None:
    """Only one boot at a time."""
    assert booted.api.get("vm.info").value["state"] == "Running"
    assert booted.api.put("vm.boot").value[1:] == ["The VM could not boot", "VM is already created"]


def test_pause_and_resume_are_states(booted: Vm) -> None:
    """Pausing shows in vm.info, a second pause is refused, and a resumed guest answers."""
    assert booted.api.put("vm.pause").status == 204
    assert booted.api.get("vm.info").value["state"] == "Paused"
    assert booted.api.put("vm.pause").status == 500
    assert booted.api.put("vm.resume").status == 204
    assert booted.api.put("vm.resume").status == 500
    assert booted.command("boot-id")


def test_counters_name_each_disk(vm: Vm) -> None:
    """vm.counters has an entry for each disk by its id."""
    vm.boot(disks=[{"path": vm.disk("data.raw", b""), "serial": "data", "image_type": "Raw"}])
    disk = vm.api.get("vm.info").value["config"]["disks"][0]["id"]
    assert disk in vm.api.get("vm.counters").value
