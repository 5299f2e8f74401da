"""The files a machine is made of, looked at before anything is started, with v53's words for what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

from chv53.config import Json
from chv53.machine import MachineError


def check(config: Json) -> None:
    """Look at disks, kernel and initramfs; raises MachineError."""
    for disk in config.get("disks", []):
        check_disk(disk)
    payload = config["payload"]
    for name in ("kernel", "initramfs"):
        problem = _why_unreadable(payload[name]) if name in payload else None
        if problem is not None:
            raise MachineError(f"Cannot open {name} file", problem)
    if "kernel" in payload:
        _check_kernel(Path(payload["kernel"]))


def check_disk(disk: Json) -> None:
    """Look at one disk; raises MachineError."""
    if "path" not in disk:
        raise MachineError("Error from device manager", "No disk path was specified when one was expected")
    problem = _why_unreadable(disk["path"])
    if problem is not None:
        reason = f"I/O error (path={disk['path']} op=open)"
        raise MachineError("Error from device manager", "Cannot open disk path", reason, problem)


def vsock_error(error: OSError) -> MachineError:
    """Return what v53 says when it cannot bind the vsock's socket, as with one that a crash left behind."""
    return MachineError(
        "Error from device manager",
        "Cannot create virtio-vsock backend",
        "Error binding to the host-side Unix socket",
        f"{error.strerror} (os error {error.errno})",
    )


def _check_kernel(path: Path) -> None:
    loader = "Kernel Loader: "
    if path.is_dir():
        problem = f"{loader}Unable to read bzImage header"
    else:
        with path.open("rb") as file:
            head = file.read(0x206)
        if head.startswith(b"\x7fELF") or head[0x202:0x206] == b"HdrS":
            return
        problem = f"{loader}Invalid bzImage"
    failed = f"{loader}failed to load bzImage kernel image: {problem}"
    raise MachineError("Cannot load the kernel into memory", failed, problem, partial=True)


def _why_unreadable(path: str) -> str | None:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return f"{error.strerror} (os error {error.errno})"
    return None
