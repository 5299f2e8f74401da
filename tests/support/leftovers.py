"""What a test run may leave on the machine: nothing. Used by the last test of the suite."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

OURS = (
    "cloud-hypervisor",
    "qemu-system",
    "vhost-device-vsock",
    "cellmesh",
    "bridge/main.py",
    "simulator",
    "crun",
    "/envoy -c",
)
"""Words in the command line of every process this project starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The machine at one moment: processes of ours, mounts, unix sockets with a path, network namespaces."""

    processes: frozenset[str]
    mounts: frozenset[str]
    sockets: frozenset[str]
    namespaces: frozenset[str]

    def since(self, before: Snapshot) -> dict[str, set[str]]:
        """Name what is here now and was not before, by kind; kinds without any are left out."""
        kinds = ("processes", "mounts", "sockets", "namespaces")
        fresh = {kind: set(getattr(self, kind) - getattr(before, kind)) for kind in kinds}
        return {kind: found for kind, found in fresh.items() if found}


def take() -> Snapshot:
    """Read the machine's present state from /proc."""
    return Snapshot(
        processes=frozenset(_processes()),
        mounts=frozenset(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        sockets=frozenset(_sockets()),
        namespaces=frozenset(path.name for path in Path("/run/netns").glob("*")),
    )


def _processes() -> list[str]:
    """List processes of ours that are not ancestors of this one: `make test` names cellmesh in its own path."""
    found = []
    ancestors = _ancestors()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in ancestors:
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(word in command for word in OURS):
            found.append(f"{entry.name} {command}")
    return found


def _ancestors() -> set[int]:
    pids, pid = set(), os.getpid()
    while pid > 0:
        pids.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pids


def _sockets() -> list[str]:
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return [fields[7] for line in lines if len(fields := line.split()) > 7 and fields[7].startswith("/")]
