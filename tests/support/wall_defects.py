"""A guest whose agent leaves walls out: the control of the tests that try them.

The defects live in a copy of the agent that is built into an image of its own. In a container of that guest the
variable PLANTED says which walls are missing; the agent of the checkout knows nothing of it.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from cellmesh.image import GuestImage, build_guest, guest
from support.images import shared_store

AGENT = "cellmesh.guest"
VARIABLE = "PLANTED"
LOCKS, ROOMS = "locks", "rooms"
"""What holds a process back from the machine, descriptors included; and what keeps it from seeing other containers."""

_BUNDLE = """

_sound_process, _sound_configuration = process, oci_configuration


def process(**parts):
    made = _sound_process(**parts)
    if "PLANTED=locks" in made["env"]:
        # None that a test's system call could end the machine with.
        more = ["CAP_MKNOD", "CAP_NET_RAW", "CAP_SYS_RAWIO", *_ROOT_CAPABILITIES]
        made["capabilities"].update(dict.fromkeys(("bounding", "effective", "permitted"), more))
        made["noNewPrivileges"] = False
    return made


def oci_configuration(bundle):
    made = _sound_configuration(bundle)
    linux, variables = made["linux"], made["process"]["env"]
    if "PLANTED=locks" in variables:
        for wall in ("seccomp", "maskedPaths", "readonlyPaths", "uidMappings", "gidMappings"):
            del linux[wall]
        linux["namespaces"] = [each for each in linux["namespaces"] if each["type"] != "user"]
    if "PLANTED=rooms" in variables:
        linux["namespaces"] = [each for each in linux["namespaces"] if each["type"] != "pid"]
        bound = {"type": "bind", "options": ["rbind"]}
        made["mounts"][0] = {**bound, "destination": "/proc", "source": "/proc"}
        made["mounts"].append({**bound, "destination": "/machine", "source": "/run/cellmesh/containers"})
    return made
"""
_CRUN = """

_sound_start, _sound_run = Crun.start, _Launch.run
_LEAKED = 100


async def _leaking_run(self, arguments, name, stdio):
    if "PLANTED=locks" in (self.description.parent / "config.json").read_text():
        os.dup2(machine := os.open("/", os.O_RDONLY), _LEAKED)
        os.close(machine)
        arguments = [arguments[0], f"--preserve-fds={_LEAKED - 2}", *arguments[1:]]
    return await _sound_run(self, arguments, name, stdio)


async def _start_in_one_network(self, name, slot, spec, stdio):
    if ("PLANTED", "rooms") in spec.environment:
        if "shared" not in self._networks:
            self._networks["shared"] = NetworkNamespace.create()
        self._networks[name] = self._networks["shared"]
    return await _sound_start(self, name, slot, spec, stdio)


Crun.start, _Launch.run = _start_in_one_network, _leaking_run
"""
_PLANTED = {"containers/bundle.py": _BUNDLE, "containers/crun.py": _CRUN}
_UNBOUNDED = {
    "pools.py": """

def set_pools():
    (_SYSCTL / "kernel/pid_max").write_text("4194304")
    return []
""",
    "boot.py": """

_DATA_OPTIONS = ""  # Projects are counted, and no limit is kept.
""",
    "netns.py": """

_ACCEPT_QUEUE = "4096"
""",
    "containers/datagrams.py": """

def bound_datagrams(cgroup):
    return []
""",
    "containers/bundle.py": """

_LIMITS = (("RLIMIT_NOFILE", 1024, 65536),)
_bounded_configuration = oci_configuration


def oci_configuration(bundle):
    made = _bounded_configuration(bundle)
    del made["linux"]["seccomp"]["listenerPath"]
    for rule in made["linux"]["seccomp"]["syscalls"]:
        if rule["action"] == "SCMP_ACT_NOTIFY":
            rule["action"] = "SCMP_ACT_ALLOW"
    for mount in made["mounts"]:
        mount["options"] = [each for each in mount["options"] if not each.startswith("max=")]
    return made
""",
}


def guest_without_walls() -> GuestImage:
    """Return the guest image with the agent of the checkout that leaves out the walls PLANTED names."""
    return _guest_with(_PLANTED)


def guest_without_bounds() -> GuestImage:
    """Return the guest image with an agent that leaves the kernel's machine-wide limits as they are."""
    return _guest_with(_UNBOUNDED)


def _guest_with(defects: Mapping[str, str]) -> GuestImage:
    store = shared_store()
    with _agent_with_defects(defects) as agent:
        found = guest._locations

        def locations(module: str) -> Iterable[str]:
            return [str(agent)] if module == AGENT else found(module)

        with mock.patch.object(guest, "_locations", locations):
            return store.guest(build_guest(store))


@contextmanager
def _agent_with_defects(defects: Mapping[str, str]) -> Iterator[Path]:
    spec = importlib.util.find_spec(AGENT)
    assert spec is not None
    assert spec.submodule_search_locations
    with tempfile.TemporaryDirectory(prefix="cellmesh-defects-") as name:
        agent = Path(name, "guest")
        # Other processes write their bytecode there under names that are gone a moment later.
        sources = shutil.ignore_patterns("__pycache__")
        shutil.copytree(next(iter(spec.submodule_search_locations)), agent, ignore=sources)
        for module, defect in defects.items():
            with (agent / module).open("a") as source:
                source.write(defect)
        yield agent
