"""QEMU's command line for one VM configuration.

Chosen by boot time under TCG: no firmware tables or devices that a cloud kernel would only probe in vain.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from chv53.config import Json, memory_bytes

_FREE_PORTS = 8  # How many disks can be plugged in later.
_FIXED_DISKS = 2  # The first ones, root and data, are never unplugged, and each port costs time at boot.
_FIRST_PORT_SLOT = 0x10
_MACHINE = "q35,hpet=off,smm=off,vmport=off,sata=off,smbus=off,i8042=off,memory-backend=memory"


def arguments(config: Json, *, accelerator: str, vsock: int | None, control: int) -> list[str]:
    """Return the command line; `vsock` and `control` are inherited descriptors of connected sockets."""
    size = memory_bytes(config)
    line = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-action", "reboot=shutdown"]
    line += ["-M", _MACHINE, "-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max"]
    line += ["-smp", str(config["cpus"]["boot_vcpus"]), "-m", f"{size}B"]
    line += ["-object", f"memory-backend-memfd,id=memory,share=on,size={size}"]
    line += ["-chardev", f"socket,id=control,fd={control}", "-mon", "chardev=control,mode=control"]
    line += _payload(config["payload"])
    line += _console(config["console"])
    if vsock is not None:
        line += ["-chardev", f"socket,id=vsock,fd={vsock}", "-device", "vhost-user-vsock-pci,chardev=vsock"]
    line += ["-object", f"rng-random,id=entropy,filename={config['rng']['src']}"]
    line += ["-device", "virtio-rng-pci,rng=entropy"]
    disks = config.get("disks", [])
    line += _ports(port_count(disks))
    used = ports_at_boot(disks)
    for disk in disks:
        place = {"bus": f"port{used[disk['id']]}"} if disk["id"] in used else {}
        line += ["-blockdev", _json(block_node(disk)), "-device", _json({**block_device(disk), **place})]
    return line


def port_count(disks: Sequence[Json]) -> int:
    """Return how many root ports a machine has that boots with these disks."""
    return _FREE_PORTS + len(ports_at_boot(disks))


def ports_at_boot(disks: Sequence[Json]) -> dict[str, int]:
    """Return the root port of each disk that can be unplugged; the first two are on the root bus."""
    return {disk["id"]: _FREE_PORTS + index for index, disk in enumerate(disks[_FIXED_DISKS:])}


def block_node(disk: Json) -> Json:
    """Return the back end of a disk, as `blockdev-add` takes it."""
    file = {"driver": "file", "filename": disk["path"], "discard": "unmap"}
    return {"driver": "raw", "node-name": node_name(disk["id"]), "read-only": disk["readonly"], "file": file}


def block_device(disk: Json) -> Json:
    """Return the front end of a disk, as `device_add` takes it."""
    serial = {"serial": disk["serial"]} if "serial" in disk else {}
    return {"driver": "virtio-blk-pci", "id": device_name(disk["id"]), "drive": node_name(disk["id"]), **serial}


def node_name(identifier: str) -> str:
    """Return QEMU's name for the back end of a disk."""
    return f"node{identifier}"


def device_name(identifier: str) -> str:
    """Return QEMU's name for a device: its names may not begin with an underscore."""
    return f"device{identifier}"


def _payload(payload: Json) -> list[str]:
    line = ["-kernel", payload["kernel"], "-append", payload.get("cmdline", "")]
    return [*line, "-initrd", payload["initramfs"]] if "initramfs" in payload else line


def _console(console: Json) -> list[str]:
    if console["mode"] != "File":
        return []
    chardev = f"file,id=console,path={_escaped(console['file'])}"
    return ["-chardev", chardev, "-device", "virtio-serial-pci", "-device", "virtconsole,chardev=console"]


def _ports(count: int) -> list[str]:
    line = []
    for index in range(count):
        place = f"addr={_FIRST_PORT_SLOT + index // 8:#x}.{index % 8},multifunction=on"
        line += ["-device", f"pcie-root-port,id=port{index},chassis={index + 1},{place}"]
    return line


def _escaped(path: str) -> str:
    return path.replace(",", ",,")


def _json(value: Json) -> str:
    return json.dumps(value)
