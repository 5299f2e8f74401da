"""What PID 1 does before anything else: file systems, cgroups, loopback, the data disk."""

import contextlib
import errno
import fcntl
import os
import resource
import socket
import struct
from pathlib import Path

from cellmesh.guest import disks, kernel, pools

DATA = "/data"
DISCARDED = "discarded"
RUN = "/run/cellmesh"
CGROUPS = "/sys/fs/cgroup"
CONTAINER_CGROUPS = f"{CGROUPS}/containers"
_AGENT_CGROUP = f"{CGROUPS}/agent"
_AGENT_MEMORY_FLOOR = 64 << 20
_AGENT_WEIGHT = "1000"  # A container's is 100.
_KERNEL_MEMORY = 48 << 20
"""What containers together may never take: the agent's own, and what the kernel charges to no cgroup, bytes."""
_CONTROLLERS = ("cpu", "memory", "pids", "io")
_DATA_DISK_WAIT = 10.0
# Projects are bounded. What the file system keeps for an emergency is for who has CAP_SYS_RESOURCE, which is the agent:
# overlays write as user 0, whom the kernel lets use it unless it is told another id; nobody has this one.
_DATA_OPTIONS = "prjquota,resuid=65534"
_DESCRIPTORS = 65536

_QUIET = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
_MOUNTS = (
    ("proc", "/proc", "proc", _QUIET, ""),
    ("sysfs", "/sys", "sysfs", _QUIET, ""),
    ("devtmpfs", "/dev", "devtmpfs", kernel.MS_NOSUID, "mode=0755"),
    ("devpts", "/dev/pts", "devpts", kernel.MS_NOSUID | kernel.MS_NOEXEC, "mode=0620,ptmxmode=0666"),
    ("tmpfs", "/dev/shm", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=1777,size=16m"),  # noqa: S108  # the guest's own
    ("tmpfs", "/run", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=32m"),
    ("tmpfs", "/tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=1777,size=32m"),  # noqa: S108  # the guest's own
    ("cgroup2", CGROUPS, "cgroup2", _QUIET, "nsdelegate"),
)
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


class BootFailed(Exception):
    """The guest cannot come up; the message is the one line a person gets."""


def prepare_machine() -> None:
    """Turn a bare kernel into a machine containers can run on; raises BootFailed."""
    try:
        os.umask(0o022)
        _mount_all()
        os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
        socket.sethostname("cell")
        raise_loopback()
        warnings = [*_set_kernel(), *_prepare_cgroups(), *_mount_data()]
        Path(RUN).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise BootFailed(f"the guest cannot boot: {error}") from error
    for warning in warnings:
        say(warning)


def say(line: str) -> None:
    """Write one line to the console."""
    try:
        os.write(2, f"cellmesh: {line}\n".encode())
    except OSError:
        return  # A console that is gone must not take PID 1 with it.


def raise_loopback() -> None:
    """Bring `lo` up in the network namespace of the calling thread."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def _mount_all() -> None:
    mounted = set()
    if Path("/proc/self/mounts").exists():
        mounted = {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()}
    for source, target, filesystem, flags, data in _MOUNTS:
        if target in mounted:
            continue
        if target.startswith("/dev/"):
            Path(target).mkdir(exist_ok=True)
        kernel.mount(source, target, filesystem, flags, data)
    # A container's mounts must never travel back here.
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)


def _set_kernel() -> list[str]:
    missing = pools.set_pools()
    resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))
    # Out of memory in the guest as a whole takes a container's process: the agent's score forbids its own.
    Path("/proc/self/oom_score_adj").write_text("-1000")
    return missing


def _prepare_cgroups() -> list[str]:
    warnings = []
    Path(_AGENT_CGROUP).mkdir(exist_ok=True)
    Path(CONTAINER_CGROUPS).mkdir(exist_ok=True)
    Path(_AGENT_CGROUP, "cgroup.procs").write_text("0")
    for parent in (CGROUPS, CONTAINER_CGROUPS):
        for controller in _CONTROLLERS:
            try:
                Path(parent, "cgroup.subtree_control").write_text(f"+{controller}")
            except OSError as error:
                warnings.append(f"cgroup controller {controller} is missing in {parent}: {error.strerror}")
    _reserve_for_agent(warnings)
    return warnings


def _reserve_for_agent(warnings: list[str]) -> None:
    """Keep memory and processor time for the agent, however much the limits of all containers add up to."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    reserves = (
        (_AGENT_CGROUP, "memory.min", str(_AGENT_MEMORY_FLOOR)),
        (_AGENT_CGROUP, "cpu.weight", _AGENT_WEIGHT),
        (CONTAINER_CGROUPS, "memory.max", str(memory_for_containers(total))),
    )
    for group, name, value in reserves:
        try:
            Path(group, name).write_text(value)
        except OSError as error:
            warnings.append(f"{name} of {group} is not available: {error.strerror}")


def memory_for_containers(total: int) -> int:
    """Return how much of the machine's memory all containers together may use, bytes."""
    return total - _KERNEL_MEMORY - total // 16


def _mount_data() -> list[str]:
    device = disks.wait_for_disk("data", timeout=_DATA_DISK_WAIT)
    if device is None:
        raise BootFailed("the guest cannot boot: no disk with the serial 'data' is attached")
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOATIME
    warnings = []
    try:
        kernel.mount(device, DATA, "ext4", flags, _DATA_OPTIONS)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        kernel.mount(device, DATA, "ext4", flags)
        warnings.append("the data disk was made without project quotas: one container can fill it; a new VM's has them")
    with contextlib.suppress(OSError):
        Path(DATA, DISCARDED).mkdir(exist_ok=True)  # On a disk that is full, nothing could be discarded without it.
    return warnings
