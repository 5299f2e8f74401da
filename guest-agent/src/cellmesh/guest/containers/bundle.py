"""The OCI configuration of a container: every lock a container is held by, said in one place."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cellmesh.guest.containers.image import ImageConfig
from cellmesh.guest.containers.model import ContainerSpec
from cellmesh.guest.containers.seccomp import seccomp_profile
from cellmesh.guest.containers.users import User
from cellmesh.guest.pools import PTYS_PER_CONTAINER

IDS_PER_CONTAINER = 65536
_FIRST_ID = 100_000
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LIMITS = (
    ("RLIMIT_NOFILE", 1024, 16384),
    ("RLIMIT_CORE", 0, 0),
)
"""Kind, soft and hard limit of each process. One that the kernel also counts for the user namespace's maker (NPROC,
SIGPENDING, MSGQUEUE, MEMLOCK) must not be here: it would bound all containers together. The cgroup bounds those."""
# Over its own ids only: the user namespace makes them worthless over the machine.
_ROOT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
)
_MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
)
_READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys")
# What runtimes and allocators read to size themselves. The rest of the machine's sysfs is of no use in a container.
_SYSFS_PARTS = ("/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/kernel/mm/transparent_hugepage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """All that a container's configuration is made from."""

    name: str
    slot: int
    spec: ContainerSpec
    image: ImageConfig
    rootfs: Path
    persistent: Sequence[tuple[Path, str]]
    etc_files: Sequence[tuple[Path, str]] = ()
    network_namespace: str
    cgroup: str
    seccomp_listener: str


def first_id(slot: int) -> int:
    """Return the machine's id of the container's id 0."""
    return _FIRST_ID + slot * IDS_PER_CONTAINER


def command_line(spec: ContainerSpec, image: ImageConfig) -> tuple[str, ...]:
    """Return program and arguments: the specification's, or the image's."""
    return spec.argv or (image.argv + image.cmd)


def environment(spec: ContainerSpec, image: ImageConfig, name: str) -> tuple[tuple[str, str], ...]:
    """Return the variables, the specification's above the image's."""
    merged = {"PATH": _DEFAULT_PATH, "HOME": image.user.home, "HOSTNAME": name}
    merged.update(image.environment)
    merged.update(spec.environment)
    return tuple(merged.items())


def process(
    *, argv: Sequence[str], variables: Sequence[tuple[str, str]], working_dir: str, user: User, tty: bool = False
) -> dict[str, object]:
    """Return the `process` part, the same locks for a container's own process and for one run in it later."""
    capabilities = list(_ROOT_CAPABILITIES) if user.uid == 0 else []
    sets = ("bounding", "effective", "permitted")
    return {
        "terminal": tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups), "umask": 0o022},
        "args": list(argv),
        "env": [f"{name}={value}" for name, value in variables],
        "cwd": working_dir or "/",
        "capabilities": {**dict.fromkeys(sets, capabilities), "inheritable": [], "ambient": []},
        "noNewPrivileges": True,
        "oomScoreAdj": 0,
        "rlimits": [{"type": kind, "soft": soft, "hard": hard} for kind, soft, hard in _LIMITS],
    }


def oci_configuration(bundle: Bundle) -> dict[str, object]:
    """Return the whole `config.json`."""
    spec, image = bundle.spec, bundle.image
    return {
        "ociVersion": "1.0.2",
        "hostname": bundle.name,
        "root": {"path": str(bundle.rootfs), "readonly": False},
        "process": process(
            argv=command_line(spec, image),
            variables=environment(spec, image, bundle.name),
            working_dir=spec.working_dir or image.working_dir,
            user=image.user,
        ),
        "mounts": [
            *_system_mounts(),
            *(_bind(source, path, ["rbind", "rw", "nosuid", "nodev"]) for source, path in bundle.persistent),
            # After a persistent /etc, which would cover them.
            *(_bind(source, path, ["bind", "rw", "nosuid", "nodev", "noexec"]) for source, path in bundle.etc_files),
        ],
        "linux": {
            "namespaces": _namespaces(bundle.network_namespace),
            "uidMappings": [_mapping(bundle.slot)],
            "gidMappings": [_mapping(bundle.slot)],
            "cgroupsPath": bundle.cgroup,
            "seccomp": seccomp_profile(bundle.seccomp_listener),
            "maskedPaths": list(_MASKED_PATHS),
            "readonlyPaths": list(_READONLY_PATHS),
            "rootfsPropagation": "private",
        },
    }


def _namespaces(network: str) -> list[dict[str, str]]:
    own = [{"type": kind} for kind in ("user", "mount", "pid", "ipc", "uts", "cgroup")]
    return [*own, {"type": "network", "path": network}]


def _mapping(slot: int) -> dict[str, int]:
    return {"containerID": 0, "hostID": first_id(slot), "size": IDS_PER_CONTAINER}


def _system_mounts() -> list[dict[str, object]]:
    quiet = ["nosuid", "noexec", "nodev"]
    return [
        _mount("/proc", "proc", quiet),
        _mount("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=64k", "nr_inodes=1024"]),
        _mount(
            "/dev/pts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", f"max={PTYS_PER_CONTAINER}"],
        ),
        _mount("/dev/shm", "tmpfs", [*quiet, "mode=1777", "size=64m", "nr_inodes=16384"]),  # noqa: S108  # the container's own
        _mount("/dev/mqueue", "mqueue", quiet),
        # sysfs itself belongs to the owner of the network namespace, which is the machine.
        _mount("/sys", "tmpfs", [*quiet, "mode=755", "size=64k", "ro"]),
        *(_bind(Path(part), part, ["rbind", "ro", *quiet]) for part in _SYSFS_PARTS if Path(part).is_dir()),
        _mount("/sys/fs/cgroup", "cgroup", [*quiet, "relatime", "ro"]),
    ]


def _mount(destination: str, kind: str, options: list[str]) -> dict[str, object]:
    return {"destination": destination, "type": kind, "source": kind, "options": options}


def _bind(source: Path, path: str, options: list[str]) -> dict[str, object]:
    return {"destination": path, "type": "bind", "source": str(source), "options": options}
