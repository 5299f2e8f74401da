"""The handle file: what a restarted hypervisor needs to find a VM's processes again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path

from cellmesh.hypervisor.vmm.errors import VmmInvalid, shown
from cellmesh.hypervisor.vmm.model import Handle

_MAX = 8192


def write(path: Path, handle: Handle) -> None:
    """Replace the handle file; it and its name are on the disk when this returns."""
    temporary = path.with_suffix(".new")
    content = json.dumps({**asdict(handle), "directory": str(handle.directory), "created": handle.created.isoformat()})
    write_durably(temporary, content)
    temporary.replace(path)
    sync_directory(path.parent)


def read(path: Path) -> Handle | None:
    """Return the handle, None if there is none. Raises VmmInvalid for a file that is not a whole handle."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX)
    except FileNotFoundError:
        return None
    try:
        raw = json.loads(content)
        known = {field.name: raw[field.name] for field in fields(Handle)}
        known["directory"] = Path(known["directory"])
        known["created"] = datetime.fromisoformat(known["created"])
        numbers = ("epoch", "pid", "start_ticks", "uid", "bridge_pid", "bridge_start_ticks")
        if any(type(known[name]) is not int or known[name] < 0 for name in numbers):
            raise ValueError("a number is not one")
        return Handle(**known)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VmmInvalid(f"The handle file {path} cannot be read: {shown(repr(error))}.") from error


def write_durably(path: Path, content: str) -> None:
    """Write a new private file and wait until the disk has it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    """Wait until the disk has the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
