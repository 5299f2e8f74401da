"""The kernel's machine-wide limits, set so that no container can take what another container or the agent needs.

Two rules. What the kernel charges to a cgroup (files, inotify, timers, threads, keys of a queue) needs no machine-wide
limit: the container's memory limit comes first, so the limit is raised out of reach. What the kernel charges to no
cgroup (socket buffers, ptys) gets a small limit here, or is refused in `containers.seccomp`.
"""

import resource
from pathlib import Path

_SYSCTL = Path("/proc/sys")
_MOST = str(2**31 - 1)
PTYS_PER_CONTAINER = 64
"""The kernel keeps about 50 KiB for each, charged to no cgroup."""
_CONTAINERS = 16
_PTY_RESERVE = 256
_BUFFER = 64 << 10

_SETTINGS = (
    # Adopting an exited process by its number is only sound while numbers do not come round again.
    ("kernel/pid_max", "4194304"),
    ("kernel/printk", "3"),
    # Charged to the cgroup that uses them.
    ("fs/file-max", str(2**63 - 1)),
    ("fs/inotify/max_user_instances", _MOST),
    ("fs/inotify/max_user_watches", _MOST),
    ("kernel/threads-max", str(0x3FFFFFFF)),
    # Charged to none. `max=` of each container's devpts is its share; the reserve is the agent's alone.
    ("kernel/pty/max", str(_CONTAINERS * PTYS_PER_CONTAINER + _PTY_RESERVE)),
    ("kernel/pty/reserve", str(_PTY_RESERVE)),
    # Largest buffer of a socket a program may ask for, and the one it gets unasked, bytes.
    ("net/core/rmem_max", str(_BUFFER)),
    ("net/core/rmem_default", str(_BUFFER)),
    ("net/core/optmem_max", "20480"),
    # Native AIO is refused to containers; its requests are charged to no cgroup.
    ("fs/aio-max-nr", "0"),
)
_COUNTED_FOR_ROOT = (
    resource.RLIMIT_NPROC,
    resource.RLIMIT_SIGPENDING,
    resource.RLIMIT_MSGQUEUE,
    resource.RLIMIT_MEMLOCK,
)


def set_pools() -> list[str]:
    """Set the limits; returns a sentence for each one this kernel does not have. Raises OSError."""
    missing = []
    for name, value in _SETTINGS:
        try:
            (_SYSCTL / name).write_text(value)
        except FileNotFoundError:
            missing.append(f"the kernel has no setting {name}")
    # A container's use also counts for the maker of its user namespace, which is this process: at the kernel's usual
    # limits one container could use up what all of them share.
    for kind in _COUNTED_FOR_ROOT:
        resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return missing
