"""What a test run may leave on the machine: nothing. Used at the end of each run.

Several runs may share a machine, such as two checkouts. Each has a number, which its processes have in their
environment, and a directory for temporary files with that number in its name.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

OURS = (
    "cloud-hypervisor",
    "qemu-system",
    "vhost-device-vsock",
    "-m cellmesh",
    "bin/cellmesh ",
    "import cellmesh",
    "from cellmesh",
    "-m dev_authenticator",
    "bridge/main.py",
    "-m support.zygote",
    "crun",
    "/envoy -c",
)
"""Words in the command line of every process this project starts; the name of a checkout is none of them."""

RUN = "TEST_RUN_OF_CELLMESH"
"""Names the variable with the number of the test run that a process belongs to."""
_ROOT = re.compile(r"/tmp/ct(\d+)(?:[/\s\0]|$)")  # short: the paths of unix sockets below it have 107 bytes


def begin_run() -> Path:
    """Give this run its number and its directory for temporary files, to all processes that it starts; return that.

    The number is drawn, as a run that was killed leaves its directory and may have had our process id.
    """
    os.environ[RUN] = str(secrets.randbelow(10**8))
    root = Path(f"/tmp/ct{os.environ[RUN]}")
    root.mkdir()
    root.chmod(0o755)  # the uids of VMs pass through it
    os.environ["TMPDIR"] = tempfile.tempdir = str(root)
    return root


def is_of_another_run(text: str, environment: bytes = b"") -> bool:
    """Tell whether a path, or a command line with its environment, is certainly that of another test run.

    The environment of a hypervisor under test lacks the number, but has directories of the run.
    """
    ours = os.environ.get(RUN)
    variables = environment.decode(errors="replace")
    numbers = {*_ROOT.findall(text), *_ROOT.findall(variables)}
    numbers |= {*re.findall(rf"(?:^|\0){RUN}=(\d+)(?:\0|$)", variables)}
    return ours is not None and bool(numbers) and ours not in numbers


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
        mounts=frozenset(_mounts()),
        sockets=frozenset(_sockets()),
        namespaces=frozenset(path.name for path in Path("/run/netns").glob("*")),
    )


def _processes() -> list[str]:
    """List processes of this run that are not ancestors of this one: `make test` names cellmesh in its own path."""
    found = []
    ancestors = _ancestors()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in ancestors:
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            environment = (entry / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(word in command for word in OURS) and not is_of_another_run(command, environment):
            found.append(f"{entry.name} {command}")
    return found


def _ancestors() -> set[int]:
    pids, pid = set(), os.getpid()
    while pid > 0:
        pids.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pids


def _mounts() -> list[str]:
    places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [place for place in places if not is_of_another_run(place)]


def _sockets() -> list[str]:
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    paths = [fields[7] for line in lines if len(fields := line.split()) > 7 and fields[7].startswith("/")]
    return [path for path in paths if not is_of_another_run(path)]
