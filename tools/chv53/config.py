"""The VM configuration as `vm.create` takes it and `vm.info` shows it: v53's defaults in, unknown keys out."""

from __future__ import annotations

import copy
from typing import Any

Json = dict[str, Any]

_CPUS: Json = {
    "boot_vcpus": 1,
    "max_vcpus": 1,
    "kvm_hyperv": False,
    "max_phys_bits": 46,
    "features": {"amx": False},
    "nested": True,
    "core_scheduling": "Vm",
    "profile": "Host",
}
_MEMORY: Json = {
    "size": 512 << 20,
    "mergeable": False,
    "hotplug_method": "Acpi",
    "shared": False,
    "hugepages": False,
    "prefault": False,
    "reserve": False,
    "thp": True,
}
_DISK: Json = {
    "pci_segment": 0,
    "path": None,
    "readonly": False,
    "direct": False,
    "num_queues": 1,
    "queue_size": 128,
    "vhost_user": False,
    "disable_io_uring": False,
    "disable_aio": False,
    "serial": None,
    "backing_files": False,
    "sparse": True,
    "image_type": "Unknown",
    "lock_granularity": "ByteRange",
}
_FIRST_GUEST_CID = 3
_FLAGS = ("pvpanic", "iommu", "watchdog", "landlock_enable")
_PAYLOAD_KEYS = ("firmware", "kernel", "cmdline", "initramfs")


class BadConfigError(Exception):
    """A value that v53 could not deserialize."""


def parse_vm(given: Json) -> Json:
    """Return the whole configuration that `given` stands for; raises BadConfigError."""
    config: Json = {
        "cpus": _filled(_CPUS, given.get("cpus"), "cpus"),
        "memory": _memory(given.get("memory")),
    }
    if given.get("payload") is not None:
        payload = _object(given["payload"], "payload")
        chosen = {key: payload[key] for key in _PAYLOAD_KEYS if payload.get(key) is not None}
        for key, value in chosen.items():
            if not isinstance(value, str):
                raise BadConfigError(f"invalid type for `{key}`, expected path string")
        if chosen:
            config["payload"] = chosen
    if given.get("disks") is not None:
        if not isinstance(given["disks"], list):
            raise BadConfigError("invalid type for `disks`, expected a sequence")
        config["disks"] = [parse_disk(disk) for disk in given["disks"]]
    config["rng"] = {"pci_segment": 0, **_filled({"src": "/dev/urandom"}, given.get("rng"), "rng")}
    config["serial"] = _console(given.get("serial"), "Null")
    config["console"] = {**_console(given.get("console"), "Tty"), "pci_segment": 0}
    config["debug_console"] = {"mode": "Off", "iobase": 233}
    if given.get("vsock") is not None:
        config["vsock"] = _vsock(_object(given["vsock"], "vsock"))
    config.update({flag: bool(given.get(flag, False)) for flag in _FLAGS})
    return config


def parse_disk(given: Any) -> Json:
    """Return one disk with defaults; raises BadConfigError."""
    disk = _filled(_DISK, given, "disks")
    for key in ("path", "serial", "id"):
        if not isinstance(given.get(key), str | None):
            raise BadConfigError(f"invalid type for `{key}`, expected a string")
    if "id" in given:
        disk = {"id": given["id"], **disk}
    return {key: value for key, value in disk.items() if value is not None}


def why_invalid(config: Json) -> tuple[str, ...] | None:
    """Return what validation at boot says against a configuration, None if nothing."""
    failed = "Failed to validate config"
    payload = config.get("payload", {})
    if "kernel" not in payload and "firmware" not in payload:
        reason = "No bootitem provided: neither firmware nor kernel"
        return failed, "Payload configuration is not bootable", reason
    cpus = config["cpus"]
    if cpus["max_vcpus"] < cpus["boot_vcpus"]:
        return failed, f"Max CPUs ({cpus['max_vcpus']}) lower than boot CPUs ({cpus['boot_vcpus']})"
    taken = [device["id"] for device in (*config.get("disks", []), config.get("vsock", {})) if "id" in device]
    for identifier in taken:
        if taken.count(identifier) > 1:
            return failed, f"Identifier {identifier} is not unique"
    cid = config.get("vsock", {}).get("cid", _FIRST_GUEST_CID)
    if cid < _FIRST_GUEST_CID:
        return failed, f"{cid} is a special VSOCK CID"
    return None


def memory_bytes(config: Json) -> int:
    """Return the guest's memory, bytes."""
    return int(config["memory"]["size"])


def _vsock(given: Json) -> Json:
    for key, kind in (("cid", int), ("socket", str)):
        if key not in given:
            raise BadConfigError(f"missing field `{key}`")
        if not isinstance(given[key], kind):
            raise BadConfigError(f"invalid type for `{key}`")
    vsock = {"pci_segment": 0, "cid": given["cid"], "socket": given["socket"]}
    return {"id": given["id"], **vsock} if "id" in given else vsock


def _memory(given: Any) -> Json:
    if given is not None and "size" not in _object(given, "memory"):
        raise BadConfigError("missing field `size`")
    return _filled(_MEMORY, given, "memory")


def _console(given: Any, default: str) -> Json:
    console = _filled({"file": None, "mode": default}, given, "console")
    if console["mode"] not in {"Off", "Pty", "Tty", "File", "Socket", "Null"}:
        raise BadConfigError(f"unknown variant `{console['mode']}`")
    return {key: value for key, value in console.items() if value is not None}


def _object(given: Any, name: str) -> Json:
    if not isinstance(given, dict):
        raise BadConfigError(f"invalid type for `{name}`, expected a map")
    return given


def _filled(defaults: Json, given: Any, name: str) -> Json:
    filled = copy.deepcopy(defaults)
    for key, value in _object({} if given is None else given, name).items():
        if key not in filled:
            continue
        default = filled[key]
        if default is not None and value is not None and type(value) is not type(default):
            raise BadConfigError(f"invalid type for `{key}`")
        if value is not None:
            filled[key] = value
    return filled
