"""Looking for processes and directories that belong to no known VM. Nothing here kills or removes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from cellmesh.hypervisor.bridge.client import FLAG
from cellmesh.hypervisor.vmm import process
from cellmesh.hypervisor.vmm.errors import InvalidVm, shown
from cellmesh.hypervisor.vmm.layout import Layout, short
from cellmesh.hypervisor.vmm.model import Stray

API_FLAG = "--api-socket"


def vmm_processes(directory: Path) -> list[int]:
    """Return the processes whose arguments name the API socket of a run directory."""
    return [pid for pid, argv in process.every_argv() if vmm_directory(argv) == directory]


def bridge_processes(directory: Path) -> list[int]:
    """Return the bridges of a run directory."""
    return [pid for pid, argv in process.every_argv() if bridge_directory(argv) == directory]


def vmm_directory(argv: tuple[str, ...]) -> Path | None:
    """Return the run directory a VMM's arguments name; None for any other process.

    The tools that become a VMM (prlimit, setpriv) carry the same arguments, so a start is seen from its first moment.
    """
    value = _value_after(argv, API_FLAG)
    return Path(value.removeprefix("path=")).parent if value and value.startswith("path=") else None


def bridge_directory(argv: tuple[str, ...]) -> Path | None:
    """Return the run directory a bridge's arguments name; None for any other process."""
    value = _value_after(argv, FLAG)
    return Path(value) if value else None


def strays(layout: Layout, known: Collection[str]) -> Iterator[Stray]:
    """Yield what belongs to none of the known VMs; an entry that cannot be read is yielded as such."""
    shorts = {short(vm_id) for vm_id in known}
    for pid, argv in process.every_argv():
        for kind, directory in (("vmm", vmm_directory(argv)), ("bridge", bridge_directory(argv))):
            if directory is not None and directory.parent == layout.run_root and directory.name not in shorts:
                yield Stray(kind=kind, name=shown(directory.name), pid=pid, path=directory)
    yield from _directories("run_directory", layout.run_root, shorts)
    yield from _directories("state_directory", layout.state_root, set(known))


def _directories(kind: str, root: Path, known: Collection[str]) -> Iterator[Stray]:
    for entry in sorted(root.iterdir()) if root.is_dir() else ():
        if entry.name in known:
            continue
        try:
            short(entry.name)
            readable = entry.is_dir() and not entry.is_symlink()
        except InvalidVm:
            readable = False
        yield Stray(kind=kind if readable else "unreadable", name=shown(entry.name), pid=None, path=entry)


def _value_after(argv: tuple[str, ...], flag: str) -> str | None:
    return argv[argv.index(flag) + 1] if flag in argv[:-1] else None
