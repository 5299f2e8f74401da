"""Where a VM's files lie, who owns them, and which names may become a path at all."""

from __future__ import annotations

import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from cellmesh.hypervisor.vmm.errors import InvalidVm, shown

HELLO_PORT = 1025
"""The host port a guest dials first."""
AGENT_PORT = 1024
"""The guest port its agent listens on."""
_MAX_SOCKET_PATH = 100  # sun_path holds 107 bytes; the hypervisor's own suffixes need some of them
_MAX_INGRESS_PATH = 107
_LONGEST_INGRESS = len("c" * 32 + ".9999999999.9999999999")  # a container's name, epoch and generation
_VM_ID = re.compile(r"[0-9a-f][0-9a-f-]{10,34}[0-9a-f]", re.ASCII)
_SHORT = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The run and the state directory of one hypervisor."""

    run_dir: Path
    state_dir: Path
    edge_gid: int | None = None
    """The group that may connect to ingress sockets; None leaves them to our own."""

    @property
    def run_root(self) -> Path:
        """The directory of all VMs' run directories."""
        return self.run_dir / "vm"

    @property
    def ingress_root(self) -> Path:
        """The directory of all VMs' ingress sockets. It and what is below is ours: no VM may put anything there.

        The edge follows a path to where it leads. In a directory of a VM's uid that could be a link to another VM's
        socket, or to the edge's own.
        """
        return self.run_dir / "in"

    @property
    def state_root(self) -> Path:
        """The directory of all VMs' state directories."""
        return self.state_dir / "vm"

    def run(self, vm_id: str) -> Path:
        """Return the VM's run directory."""
        return self.run_root / short(vm_id)

    def ingress(self, vm_id: str) -> Path:
        """Return the directory of the VM's ingress sockets."""
        return self.ingress_root / short(vm_id)

    def state(self, vm_id: str) -> Path:
        """Return the VM's state directory."""
        short(vm_id)  # refuses what may not become a path
        return self.state_root / vm_id

    def handle(self, vm_id: str) -> Path:
        """Return the VM's handle file."""
        return self.state(vm_id) / "handle.json"

    def make(self, vm_id: str, *, uid: int, separate: bool) -> None:
        """Make the VM's directories: the run directory is its uid's alone, the state directory it may only traverse."""
        run, state = self.run(vm_id), self.state(vm_id)
        ingress = len(os.fsencode(self.ingress(vm_id))) + 1 + _LONGEST_INGRESS
        if len(os.fsencode(run / f"vsock.sock_{HELLO_PORT}")) >= _MAX_SOCKET_PATH or ingress > _MAX_INGRESS_PATH:
            raise InvalidVm(f"The run directory {run} is too long for sockets; choose a shorter CELLMESH_RUN_DIR.")
        for directory in (self.run_dir, self.run_root, self.state_dir, self.state_root):
            make_traversable(directory)
        for directory in (run, run / "in", state):
            directory.mkdir(exist_ok=True, mode=0o700)
        if separate:
            for directory in (run, run / "in"):
                os.chown(directory, uid, uid, follow_symlinks=False)
            os.chown(state, 0, uid, follow_symlinks=False)
            state.chmod(0o710)
        for directory in (self.ingress_root, self.ingress(vm_id)):
            directory.mkdir(exist_ok=True, mode=0o700)
            if self.edge_gid is not None:
                os.chown(directory, -1, self.edge_gid)
                # Not by mkdir: a service's umask would take from the group what it is to have.
                directory.chmod(0o710)


def short(vm_id: str) -> str:
    """Return the first 12 hex digits of a VM's id. Raises InvalidVm for what is not an id."""
    digits = vm_id.replace("-", "")
    if not _VM_ID.fullmatch(vm_id) or len(digits) < _SHORT:
        raise InvalidVm(f"{shown(vm_id)!r} is not a VM id; it needs at least 12 lower-case hex digits.")
    return digits[:_SHORT]


def own_socket(path: Path, uid: int) -> None:
    """Give a socket to a uid, mode 0600. The socket is held open meanwhile, so a swapped name is not followed."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISSOCK(found.st_mode) or found.st_nlink != 1:
            raise InvalidVm(f"{path} is not a socket of ours; it was not given away.")
        held = f"/proc/self/fd/{descriptor}"
        os.chown(held, uid, uid)
        os.chmod(held, 0o600)  # noqa: PTH101 - a Path would hide that this is a descriptor
    finally:
        os.close(descriptor)


def clear_stale(run: Path) -> None:
    """Remove what an earlier boot left in the run directory; the host's own listeners (vsock.sock_*) stay."""
    for name in ("api.sock", "api.sock.lock", "vsock.sock", "bridge.sock", "events.json", "console.fifo"):
        (run / name).unlink(missing_ok=True)
    for socket in (run / "in").iterdir():
        socket.unlink()


def remove(directory: Path) -> None:
    """Remove a directory of a dead VM, whatever its uid put there; links in it are removed, never followed."""
    if directory.is_symlink():
        raise InvalidVm(f"{directory} is a symbolic link; it was not followed.")
    if directory.exists():
        shutil.rmtree(directory)


def make_traversable(directory: Path) -> None:
    """Make a directory that others may pass through, whatever our umask."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o711)
    mode = stat.S_IMODE(directory.stat().st_mode)
    if mode & 0o111 != 0o111:
        directory.chmod(mode | 0o111)  # VMs and the edge must get to their own, and may list none on the way
