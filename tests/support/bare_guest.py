"""A guest image without the agent, for benchmarks: what remains is what the VM itself costs."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from cellmesh.image import GuestImage
from cellmesh.image.cache import default_cache, sha256_of
from cellmesh.image.erofs import write_erofs
from cellmesh.image.tree import Directory, File, Tree

SOURCE = Path(__file__).parents[2] / "image/bare/init.c"
MOUNT_POINTS = ("dev", "proc", "run", "sys", "tmp")


def build_bare_guest(guest_image: GuestImage) -> tuple[Path, Path, Path]:
    """Return kernel, initramfs and a root whose /sbin/init says one line on vsock port 1025 of the host, no more.

    Kernel and initramfs are those of `guest_image`; needs gcc and a static C library.
    """
    with tempfile.TemporaryDirectory(prefix="cellmesh-bare-") as name:
        program = Path(name, "init")
        subprocess.run(["gcc", "-static", "-Os", "-s", "-Wall", "-Werror", "-o", program, SOURCE], check=True)
        tree = Tree()
        for point in MOUNT_POINTS:
            tree.put(point, Directory())
        tree.put("sbin/init", File(content=program.read_bytes(), mode=0o755))
        fresh = Path(name, "rootfs.erofs")
        write_erofs(tree.root, fresh, uuid=bytes(16), timestamp=guest_image.source_date_epoch)
        kept = default_cache() / "bare" / f"{sha256_of(fresh)}.erofs"
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{Path(name).name}")
        partial.write_bytes(fresh.read_bytes())
        partial.replace(kept)
    return guest_image.kernel, guest_image.initramfs, kept
