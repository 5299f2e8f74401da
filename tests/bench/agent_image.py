"""A guest image whose agent has a second door, for benchmarks only: what a floor needs is done inside the guest.

Kernel, initramfs, packages and agent are those of the real image; only /sbin/init differs, and one module is added.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cellmesh.image import GuestImage, ImageStore
from cellmesh.image.cache import BuildCache, default_cache
from cellmesh.image.erofs import write_erofs
from cellmesh.image.guest import ROOT_DEBS, add_agent
from cellmesh.image.manifest import describe, guest_manifest
from cellmesh.image.root import MODULES, base_tree, prepared_root
from cellmesh.image.tree import File
from cellmesh.image.wheels import is_wheel

SOURCES = Path(__file__).with_name("guest")


def publish(store: ImageStore, guest: GuestImage, sources: Path = SOURCES) -> str:
    """Put the variant of `guest` into `store` and return its digest."""
    build = BuildCache(default_cache())
    packages = [package for package in guest.packages if is_wheel(package) or package.name in ROOT_DEBS]
    prepared = prepared_root(build, packages)
    with store.draft() as draft, build.scratch() as spool:
        tree = base_tree(prepared)
        add_agent(tree, prepared, spool)
        tree.put("usr/sbin/init", File(content=(sources / "init").read_bytes(), mode=0o755))
        for module in sources.iterdir():
            if module.name != "init":
                tree.put(f"{MODULES}/{module.name}", File(content=module.read_bytes(), mode=0o644))
        write_erofs(tree.root, draft / "rootfs.erofs", uuid=bytes(16), timestamp=guest.source_date_epoch)
        for part in (guest.kernel, guest.initramfs):
            shutil.copyfile(part, draft / part.name)
        files = {
            "kernel": describe(draft / guest.kernel.name, release=guest.kernel_release),
            "initramfs": describe(draft / guest.initramfs.name),
            "rootfs": describe(draft / "rootfs.erofs"),
        }
        manifest = guest_manifest(
            files,
            cmdline=guest.cmdline,
            agent_version=guest.agent_version,
            epoch=guest.source_date_epoch,
            packages=guest.packages,
        )
        return store.publish(draft, manifest)
