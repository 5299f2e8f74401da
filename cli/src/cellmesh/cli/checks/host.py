"""Room, paths and the Python this runs on."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from cellmesh.cli import units
from cellmesh.cli.checks.finding import Finding, Machine, Verdict

_GIB = 1 << 30
_LEAST_BYTES = _GIB
_GOOD_BYTES = 10 * _GIB
# A unix socket's path has at most 107 bytes; the node stays under 100.
_LONGEST_SOCKET = 100
_SOCKET_BELOW_RUN_DIR = f"/vm/{'0' * 12}/in/agent.{2**32}"
_OLDEST_PYTHON = (3, 11)
_OLDEST_SQLITE = (3, 35, 0)
# SQLite 3.7.0 to 3.51.2 can lose a WAL that is reset while another connection writes; https://sqlite.org/wal.html.
_SOUND_SQLITE = (3, 51, 3)


def check_space(machine: Machine) -> Finding:
    """Look for room for images and data disks."""
    place = machine.state_dir
    # Another user's directory can't be looked into, but the disk below it can be measured.
    while not os.access(place, os.F_OK):
        place = place.parent
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    message = f"{units.size(free)} are free in {place}."
    if free >= _GOOD_BYTES:
        return Finding(name="disk-space", verdict=Verdict.OK, message=message)
    verdict = Verdict.WARN if free >= _LEAST_BYTES else Verdict.FAIL
    fix = f"Make room for {units.size(_GOOD_BYTES)}, or set CELLMESH_STATE_DIR to a larger disk"
    return Finding(name="disk-space", verdict=verdict, message=message, fix=fix)


def check_path_length(machine: Machine) -> Finding:
    """Look whether the sockets of a VM will have names the kernel takes."""
    longest = len(os.fsencode(machine.run_dir)) + len(_SOCKET_BELOW_RUN_DIR)
    if longest < _LONGEST_SOCKET:
        return Finding(name="path-length", verdict=Verdict.OK, message=f"Sockets have at most {longest} bytes.")
    return Finding(
        name="path-length",
        verdict=Verdict.FAIL,
        message=f"Sockets below {machine.run_dir} would have names of {longest} bytes, too many.",
        fix="export CELLMESH_RUN_DIR=/run/cellmesh",
    )


def check_passage(machine: Machine) -> Finding:
    """Look whether the uids of VMs and of the edge can pass through the parents of the node's directories.

    The node opens its own two directories itself; it does not change the directories above them.
    """
    if machine.uid != 0:
        return Finding(name="passage", verdict=Verdict.OK, message="VMs and the edge run as this user.")
    closed = sorted({parent for top in (machine.run_dir, machine.state_dir) for parent in _closed_parents(top)})
    if not closed:
        return Finding(name="passage", verdict=Verdict.OK, message="VMs and the edge can reach their directories.")
    command = shlex.join(["chmod", "o+x", *map(str, closed)])
    return Finding(
        name="passage",
        verdict=Verdict.FAIL,
        message=f"The uids of VMs and of the edge cannot pass through {', '.join(map(str, closed))}.",
        fix=f"{command}; or put CELLMESH_RUN_DIR and CELLMESH_STATE_DIR elsewhere",
    )


def _closed_parents(top: Path) -> list[Path]:
    """Return the directories above `top` that let other uids not pass; one that is not there yet will be made open."""
    above = [parent for parent in top.resolve().parents if parent.is_dir()]
    return [parent for parent in above if not parent.stat().st_mode & stat.S_IXOTH]


def check_guest_image(machine: Machine) -> Finding:
    """Look for the guest image that new VMs get."""
    digest = default_image(machine.state_dir)
    if digest is not None:
        return Finding(name="guest-image", verdict=Verdict.OK, message=f"New VMs get {digest}.")
    return Finding(
        name="guest-image",
        verdict=Verdict.WARN,
        message="None was built: no VM can be created yet.",
        fix="cellmesh image build",
    )


def default_image(state_dir: Path) -> str | None:
    """Return the digest of the default guest image, None if there is none that can be read."""
    from cellmesh.image import ImageError, ImageStore

    try:
        return ImageStore(state_dir / "images").default_guest()
    except (ImageError, OSError):
        return None


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Look at the interpreter's version."""
    text = ".".join(map(str, version))
    if version >= _OLDEST_PYTHON:
        return Finding(name="python", verdict=Verdict.OK, message=f"Python {text}.")
    fix = "apt-get install --yes python3.11"
    return Finding(name="python", verdict=Verdict.FAIL, message=f"Python {text} is too old; 3.11 is needed.", fix=fix)


def check_protobuf() -> Finding:
    """Look which implementation of protobuf is at work: the pure Python one is too slow and unbounded."""
    from google.protobuf.internal import api_implementation

    kind = api_implementation.Type()
    if kind == "upb":
        return Finding(name="protobuf", verdict=Verdict.OK, message="protobuf runs on upb.")
    return Finding(
        name="protobuf",
        verdict=Verdict.FAIL,
        message=f"protobuf runs on {kind}, not upb.",
        fix="unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION; pip install --force-reinstall protobuf",
    )


def check_sqlite(version_of: Callable[[], tuple[int, ...]] | None = None) -> Finding:
    """Look at the SQLite the node's state will be kept in."""
    version = (version_of or _sqlite_version)()
    text = ".".join(map(str, version))
    if version >= _SOUND_SQLITE:
        return Finding(name="sqlite", verdict=Verdict.OK, message=f"SQLite {text}.")
    if version >= _OLDEST_SQLITE:
        message = f"SQLite {text} has a rare fault in its WAL; the node works around it."
        return Finding(name="sqlite", verdict=Verdict.WARN, message=message, fix="pip install pysqlite3")
    message = f"SQLite {text} is too old."
    return Finding(name="sqlite", verdict=Verdict.FAIL, message=message, fix="pip install pysqlite3")


def _sqlite_version() -> tuple[int, ...]:
    try:
        from pysqlite3 import dbapi2  # type: ignore[import-untyped]  # it has no stubs
    except ImportError:
        import sqlite3

        return sqlite3.sqlite_version_info
    return tuple(dbapi2.sqlite_version_info)
