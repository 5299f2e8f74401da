"""Limits per VM by cgroup v2, where the host has its controllers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_NEEDED = frozenset({"memory", "pids", "cpu"})
_OVERHEAD = 256 << 20  # the VMM's own memory beside the guest's
_MAX_THREADS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroups:
    """Where the VMs' cgroups are made; `root` is None on a host without cgroup v2."""

    root: Path | None

    @classmethod
    def of_host(cls) -> Cgroups:
        """Return the cgroup v2 hierarchy of this host."""
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, where, kind, *_ = line.split(" ")
            if kind == "cgroup2":
                return cls(root=Path(where))
        return cls(root=None)

    def missing(self) -> frozenset[str]:
        """Return the controllers that are needed and not there."""
        if self.root is None:
            return _NEEDED
        return _NEEDED - set((self.root / "cgroup.controllers").read_text().split())

    def confine(self, name: str, pid: int, *, memory_bytes: int, vcpus: int) -> None:
        """Put a process into a cgroup of its own, limited to its guest and some overhead; nothing without controllers.

        It is called before vm.create, so all of the guest's memory is counted.
        """
        if self.root is None or self.missing():
            return
        parent = self.root / "cellmesh"
        group = parent / name
        group.mkdir(parents=True, exist_ok=True)
        enable = " ".join(f"+{controller}" for controller in sorted(_NEEDED))
        for directory in (self.root, parent):
            (directory / "cgroup.subtree_control").write_text(enable)
        (group / "memory.max").write_text(str(memory_bytes + _OVERHEAD))
        (group / "pids.max").write_text(str(_MAX_THREADS + vcpus))
        (group / "cpu.weight").write_text(str(min(10_000, 100 * vcpus)))
        (group / "cgroup.procs").write_text(str(pid))

    def remove(self, name: str) -> None:
        """Remove the cgroup of a dead VM."""
        if self.root is not None and (group := self.root / "cellmesh" / name).is_dir():
            group.rmdir()
