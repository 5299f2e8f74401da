"""The kernel and the initramfs of the conformance guest: Debian's cloud kernel and one static program.

Built once for a machine, kept by content outside the checkout. A machine without compiler and network takes a directory
built elsewhere: CELLMESH_CONFORMANCE_GUEST.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cellmesh.image.cache import BuildCache, default_cache

_SOURCE = Path(__file__).parent / "guest" / "init.c"
_MODULES = ("virtio_blk", "vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport", "button", "evdev")
_COMPILE = ("gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror")
_FETCH = (
    "mmdebstrap",
    "--quiet",
    "--variant=extract",
    '--aptopt=Acquire::Check-Valid-Until "false"',
    "--include=linux-image-cloud-amd64",
    "trixie",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """What a conformance VM boots."""

    kernel: Path
    initramfs: Path


def payload() -> Payload:
    """Return the payload, building it if there is none yet."""
    given = os.environ.get("CELLMESH_CONFORMANCE_GUEST")
    if given:
        return _at(Path(given))
    key = hashlib.sha256(_SOURCE.read_bytes() + repr((_MODULES, _COMPILE, _FETCH)).encode()).hexdigest()[:16]
    with BuildCache(default_cache()).prepared("conformance", key) as (directory, ready):
        if not ready:
            _build(directory)
    return _at(default_cache() / "conformance" / key)


def _at(directory: Path) -> Payload:
    return Payload(kernel=directory / "vmlinuz", initramfs=directory / "initramfs")


def _build(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        root, tree = Path(name) / "debian", Path(name) / "tree"
        subprocess.run([*_FETCH, root], check=True)
        shutil.copy(next((root / "boot").glob("vmlinuz-*")), target / "vmlinuz")
        (tree / "modules").mkdir(parents=True)
        for directory in ("dev", "proc", "sys"):
            (tree / directory).mkdir()
        for module in _MODULES:
            packed = next((root / "usr/lib/modules").rglob(f"{module}.ko.xz"))
            (tree / "modules" / f"{module}.ko").write_bytes(lzma.decompress(packed.read_bytes()))
        subprocess.run([*_COMPILE, "-o", tree / "init", _SOURCE], check=True)
        names = "\n".join(sorted(str(path.relative_to(tree)) for path in tree.rglob("*")))
        with (target / "initramfs").open("wb") as archive:
            subprocess.run(
                ["cpio", "--quiet", "-o", "-H", "newc"], cwd=tree, input=names.encode(), stdout=archive, check=True
            )
    target.chmod(0o755)
