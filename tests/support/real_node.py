"""A hypervisor whose VMs are real guests: on the emulator, or on the binary CELLMESH_VMM names."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from cellmesh.image import ContainerImage, GuestImage, ImageStore
from cellmesh.image.manifest import describe, guest_manifest
from support.node import Node, node, short_directory

PATIENCE = 150.0
"""How long a guest may take for anything, seconds; three at once, emulated, on a busy machine, need a third of it."""
_INSTALL = Path(__file__).parents[2] / "tools" / "emulator" / "install.sh"


def vmm(directory: Path) -> Path:
    """Return the VMM under test; an emulator is installed in `directory`, which every uid is to reach."""
    if "CELLMESH_VMM" in os.environ:
        return Path(os.environ["CELLMESH_VMM"])
    done = subprocess.run([_INSTALL, directory], check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


@asynccontextmanager
async def real_node(
    guest: GuestImage, containers: Iterable[ContainerImage] = (), **settings: object
) -> AsyncIterator[Node]:
    """Run a hypervisor that has these images, the guest image as its default."""
    with short_directory() as directory:
        state = directory / "state"
        store = ImageStore(state / "images")
        for image in (guest, *containers):
            shutil.copytree(image.path, store.path(image.digest), copy_function=_link)
        store.set_default_guest(guest.digest)
        async with node(directory, vmm(directory), **settings) as it:
            it.patience = PATIENCE
            yield it


def variant(it: Node, guest: GuestImage, *, cmdline: str) -> str:
    """Give a node the guest image with another kernel command line; return its digest."""
    store = ImageStore(it.state_dir / "images")
    with store.draft() as draft:
        for part in (guest.kernel, guest.initramfs, guest.rootfs):
            _link(str(part), str(draft / part.name))
        files = {
            "kernel": describe(draft / guest.kernel.name, release=guest.kernel_release),
            "initramfs": describe(draft / guest.initramfs.name),
            "rootfs": describe(draft / guest.rootfs.name),
        }
        manifest = guest_manifest(
            files,
            cmdline=cmdline,
            agent_version=guest.agent_version,
            epoch=guest.source_date_epoch,
            packages=guest.packages,
        )
        return store.publish(draft, manifest)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copy2(source, target)
