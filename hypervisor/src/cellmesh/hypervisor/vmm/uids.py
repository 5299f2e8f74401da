"""One uid per VM, so that a VMM that was broken out of can reach nothing of another VM."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from cellmesh.hypervisor.vmm.errors import UidsExhausted
from cellmesh.hypervisor.vmm.handle_file import sync_directory

RANGE = 65536
"""How many uids follow the base."""


class Uids:
    """Uids given to VMs: one file per uid, named by it, holding the VM's id. Safe to call from threads."""

    def __init__(self, directory: Path, *, base: int) -> None:
        self._directory = directory
        self._base = base
        self._lock = threading.Lock()
        self._given: dict[str, int] | None = None

    def allocate(self, vm_id: str) -> int:
        """Return the VM's uid, giving it one if it has none. Raises UidsExhausted."""
        with self._lock:
            given = self._load()
            if vm_id in given:
                return given[vm_id]
            taken = set(given.values())
            for uid in range(self._base, self._base + RANGE):
                if uid not in taken and self._claim(uid, vm_id):
                    given[vm_id] = uid
                    return uid
        raise UidsExhausted(f"All {RANGE} uids from {self._base} belong to VMs; destroy one or move the range.")

    def release(self, vm_id: str) -> None:
        """Let another VM have the uid; only when nothing of this VM is left."""
        with self._lock:
            given = self._load()
            if (uid := given.pop(vm_id, None)) is not None:
                (self._directory / str(uid)).unlink(missing_ok=True)

    def _claim(self, uid: int, vm_id: str) -> bool:
        # The content comes before the name: a claim is whole or not there, wherever we are killed.
        temporary = self._directory / f"{uid}.new"
        temporary.write_text(vm_id)
        try:
            os.link(temporary, self._directory / str(uid))
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        sync_directory(self._directory)
        return True

    def _load(self) -> dict[str, int]:
        if self._given is None:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for unfinished in self._directory.glob("*.new"):  # of a hypervisor that was killed
                unfinished.unlink(missing_ok=True)
            claims = [entry for entry in self._directory.iterdir() if entry.name.isdecimal()]
            self._given = {entry.read_text(): int(entry.name) for entry in claims}
        return self._given
