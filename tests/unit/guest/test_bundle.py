"""The OCI configuration of a container."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cellmesh.guest.containers.bundle import IDS_PER_CONTAINER, Bundle, first_id, oci_configuration, process
from cellmesh.guest.containers.image import ImageConfig
from cellmesh.guest.containers.model import ContainerSpec
from cellmesh.guest.containers.users import User
from support.local_runtime import IMAGE

_PARTS = Bundle(
    name="live",
    slot=3,
    spec=ContainerSpec(image=IMAGE, environment=(("A", "spec"),)),
    image=ImageConfig(
        argv=("/app",),
        cmd=("--serve",),
        environment=(("A", "image"), ("B", "image")),
        working_dir="/srv",
        user=User(uid=1000, gid=1000, home="/home/app"),
    ),
    rootfs=Path("/run/root"),
    persistent=[(Path("/data/persist/live/srv+keep"), "/srv/keep"), (Path("/data/persist/live/etc"), "/etc")],
    etc_files=[(Path("/run/live/etc/hosts"), "/etc/hosts")],
    network_namespace="/proc/1/fd/9",
    cgroup="/containers/live",
    seccomp_listener="/run/cellmesh/seccomp.sock",
)


def _configuration(parts: Bundle = _PARTS) -> Any:
    return oci_configuration(parts)


def test_every_namespace_is_its_own() -> None:
    """A container shares no namespace with the machine, and its network is the one made for it."""
    namespaces = {entry["type"]: entry.get("path") for entry in _configuration()["linux"]["namespaces"]}
    assert set(namespaces) == {"user", "mount", "pid", "ipc", "uts", "cgroup", "network"}
    assert {kind for kind, path in namespaces.items() if path} == {"network"}


def test_root_is_nobody_outside() -> None:
    """The container's id 0 is an id of the machine that owns nothing, and no two slots overlap."""
    (mapping,) = _configuration()["linux"]["uidMappings"]
    assert mapping == {"containerID": 0, "hostID": first_id(3), "size": IDS_PER_CONTAINER}
    assert first_id(0) >= 100_000
    assert first_id(4) - first_id(3) == IDS_PER_CONTAINER
    assert _configuration()["linux"]["gidMappings"] == [mapping]


def test_a_user_has_no_capability_and_root_only_those_over_its_own_files() -> None:
    """Nobody gains privileges, and none reaches past the container."""
    described: Any = _configuration()["process"]
    assert described["noNewPrivileges"] is True
    assert not any(described["capabilities"].values())
    root: Any = process(argv=["/x"], variables=(), working_dir="/", user=User())
    assert set(root["capabilities"]["bounding"]) == {
        "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"
    }  # fmt: skip
    assert not root["capabilities"]["ambient"]
    assert not root["capabilities"]["inheritable"]


def test_no_writable_mount_but_its_own_comes_from_the_machine() -> None:
    """Only the container's own directories and files are bound writable; what it sees of the kernel is read-only."""
    mounts = _configuration()["mounts"]
    bound = [mount for mount in mounts if mount["type"] == "bind"]
    assert [(mount["source"], mount["destination"]) for mount in bound if "ro" not in mount["options"]] == [
        ("/data/persist/live/srv+keep", "/srv/keep"),
        ("/data/persist/live/etc", "/etc"),
        ("/run/live/etc/hosts", "/etc/hosts"),
    ]
    assert {mount["source"] for mount in bound if "ro" in mount["options"]} <= {
        "/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/kernel/mm/transparent_hugepage"
    }  # fmt: skip
    for mount in mounts:
        assert {"nosuid", "nodev"} <= set(mount["options"]) or mount["destination"] in {"/dev", "/dev/pts"}
    assert "ro" in next(mount["options"] for mount in mounts if mount["type"] == "cgroup")
    # By its own option: a read-only path over it would be a bind, in which the mounts below are writable again.
    assert "ro" in next(mount["options"] for mount in mounts if mount["destination"] == "/sys")
    assert not any(path.startswith("/sys") for path in _configuration()["linux"]["readonlyPaths"])
    order = [mount["destination"] for mount in mounts]
    assert order.index("/sys") < order.index("/sys/fs/cgroup")


def test_a_user_has_its_supplementary_groups_in_every_process() -> None:
    """A container's own process and a command in it belong to the same groups."""
    user = User(uid=1000, gid=1001, groups=(10, 44))
    described: Any = process(argv=["/x"], variables=(), working_dir="/", user=user)
    assert described["user"]["additionalGids"] == [10, 44]


def test_the_kernel_is_not_configured_from_inside() -> None:
    """What lies in /proc and configures the kernel is hidden or read-only."""
    linux = _configuration()["linux"]
    assert "/proc/sys" in linux["readonlyPaths"]
    assert {"/proc/kcore", "/proc/keys", "/proc/sysrq-trigger", "/proc/timer_list"} <= set(linux["maskedPaths"])
    assert linux["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"


def test_the_specification_is_above_the_image() -> None:
    """argv, environment and working directory come from the specification where it says anything."""
    described = _configuration()["process"]
    assert described["args"] == ["/app", "--serve"]
    assert described["cwd"] == "/srv"
    variables = dict(entry.split("=", 1) for entry in described["env"])
    assert (variables["A"], variables["B"], variables["HOME"]) == ("spec", "image", "/home/app")
    spec = replace(_PARTS.spec, argv=("/bin/other",), working_dir="/tmp")
    described = _configuration(replace(_PARTS, spec=spec))["process"]
    assert (described["args"], described["cwd"]) == (["/bin/other"], "/tmp")


def test_limits_a_cgroup_has_not_are_set() -> None:
    """No core files, a bound on descriptors, and nothing the kernel would count for all containers together."""
    limits = {limit["type"]: limit["hard"] for limit in _configuration()["process"]["rlimits"]}
    assert limits == {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": 16384}


@pytest.mark.parametrize(("path", "share"), [("/dev/pts", "max=64"), ("/dev/shm", "nr_inodes=16384")])
def test_a_mount_has_a_share_of_what_is_one_pool(path: str, share: str) -> None:
    """Terminals and the inodes of memory file systems are bounded for each container."""
    mounts = {mount["destination"]: mount["options"] for mount in _configuration()["mounts"]}
    assert share in mounts[path]
