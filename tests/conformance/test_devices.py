"""Disks by serial, at boot and plugged in later; the console's file."""

from __future__ import annotations

from conformance.client import eventually
from conformance.vm import Vm

MEGABYTE = 1 << 20


def test_disks_are_told_apart_by_serial(vm: Vm) -> None:
    """Each disk has its serial, size, content and write protection in the guest."""
    vm.boot(
        disks=[
            {"path": vm.disk("a.raw", b"first disk"), "serial": "root", "readonly": True, "image_type": "Raw"},
            {
                "path": vm.disk("b.raw", b"second disk", megabytes=3),
                "serial": "0123456789abcdef0123",
                "image_type": "Raw",
            },
        ]
    )
    assert vm.disks() == {
        "root": (True, MEGABYTE, b"first disk".ljust(16, b"\0")),
        "0123456789abcdef0123": (False, 3 * MEGABYTE, b"second disk".ljust(16, b"\0")),
    }


def test_disk_is_plugged_in_and_out(booted: Vm) -> None:
    """A disk added to a running VM appears in the guest, and goes when it is removed."""
    disk = {"path": booted.disk("late.raw", b"late"), "serial": "late", "readonly": True, "image_type": "Raw"}
    answer = booted.api.put("vm.add-disk", disk)
    assert answer.status == 200
    eventually(lambda: booted.disks().get("late") == (True, MEGABYTE, b"late".ljust(16, b"\0")))
    assert booted.api.get("vm.info").value["config"]["disks"][0]["id"] == answer.value["id"]
    assert booted.api.put("vm.remove-device", {"id": answer.value["id"]}).status == 204
    eventually(lambda: "late" not in booted.disks())


def test_ports_of_removed_disks_are_free_again(booted: Vm) -> None:
    """Disks can come and go under one id more often than there are slots."""
    disk = {"path": booted.disk("late.raw", b"late"), "serial": "late", "id": "late", "image_type": "Raw"}
    for _ in range(40):
        eventually(lambda: booted.api.put("vm.add-disk", disk).status == 200)  # the guest lets go before the VMM has
        eventually(lambda: "late" in booted.disks())
        assert booted.api.put("vm.remove-device", {"id": "late"}).status == 204
        eventually(lambda: "late" not in booted.disks())


def test_disk_added_before_the_boot_is_there_at_boot(vm: Vm) -> None:
    """vm.add-disk on a VM that is only created changes its configuration."""
    assert vm.api.put("vm.create", vm.config()).status == 204
    disk = {"path": vm.disk("early.raw", b"early"), "serial": "early", "image_type": "Raw"}
    assert vm.api.put("vm.add-disk", disk).status == 204
    assert vm.api.get("vm.info").value["config"]["disks"][0]["serial"] == "early"


def test_missing_disk_is_not_plugged_in(booted: Vm) -> None:
    """A path without a file is refused, and the VM goes on."""
    answer = booted.api.put("vm.add-disk", {"path": "/nowhere", "image_type": "Raw"})
    assert answer.status == 500
    assert "Cannot open disk path" in answer.value
    assert booted.command("boot-id")


def test_a_removed_disk_leaves_the_configuration_at_once_and_the_tree_when_ejected(booted: Vm) -> None:
    """The device tree of vm.info says when the guest has ejected a disk; then its id is unknown."""
    disk = {"path": booted.disk("late.raw", b"late"), "serial": "late", "image_type": "Raw"}
    device = booted.api.put("vm.add-disk", disk).value["id"]
    eventually(lambda: "late" in booted.disks())
    assert device in booted.api.get("vm.info").value["device_tree"]
    assert booted.api.put("vm.remove-device", {"id": device}).status == 204
    assert not any(each["id"] == device for each in booted.api.get("vm.info").value["config"].get("disks", []))
    eventually(lambda: device not in booted.api.get("vm.info").value["device_tree"])
    assert booted.api.put("vm.remove-device", {"id": device}).status == 500


def test_unknown_device_is_not_removed(booted: Vm) -> None:
    """A device nobody added is refused by name."""
    answer = booted.api.put("vm.remove-device", {"id": "nobody"})
    assert answer.status == 500
    assert "nobody" in answer.value[-1]


def test_console_goes_to_its_file(booted: Vm) -> None:
    """What the guest writes on hvc0 is in the console's file."""
    booted.command("console spoken aloud")
    eventually(lambda: "spoken aloud" in booted.console())
