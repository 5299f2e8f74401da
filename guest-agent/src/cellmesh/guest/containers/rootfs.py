"""A container's root: its read-only image below, a writable layer of its own above, both with its own ids.

The image's owners are shifted by an idmapped mount, so a first start touches no file, however large the image.
"""

import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from cellmesh.guest import disks, kernel
from cellmesh.guest.containers.bundle import IDS_PER_CONTAINER, first_id
from cellmesh.guest.containers.runtime import ImageMissing
from cellmesh.guest.containers.users import User

_HOT_PLUG_WAIT = 15.0  # Half of what the host waits for a start; a busy kernel takes seconds to find a disk.


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where roots are put together: image mounts, what lasts on the data disk, what does not."""

    images: Path = Path("/images")
    data: Path = Path("/data")
    run: Path = Path("/run/cellmesh/containers")

    @property
    def discarded(self) -> Path:
        """Where layers wait to be deleted."""
        return self.data / "discarded"

    def layer(self, name: str, serial: str) -> Path:
        """Return where a container's writable layer over this image lies."""
        return self.data / "layers" / name / serial

    def persistent(self, name: str, path: str) -> Path:
        """Return where one lasting directory of a container lies; `+` is in no path the contract allows."""
        return self.data / "persist" / name / path.strip("/").replace("/", "+")


def mount_image(places: Places, serial: str) -> Path:
    """Mount the image with this serial, once for all; returns where. Raises ImageMissing and OSError; blocks."""
    target = places.images / serial
    if target.is_mount():
        return target
    device = disks.wait_for_disk(serial, timeout=_HOT_PLUG_WAIT)
    if device is None:
        raise ImageMissing(f"no disk with the serial {serial} is attached")
    _mount_images_directory(places.images)
    target.mkdir(exist_ok=True)
    kernel.mount(device, str(target), "erofs", kernel.MS_RDONLY | kernel.MS_NODEV | kernel.MS_NOSUID)
    return target


def mount_root(places: Places, name: str, serial: str, slot: int) -> Path:
    """Put the root of a container together; returns where. Raises OSError; blocks."""
    home = places.run / name
    lower, root = home / "lower", home / "rootfs"
    unmount_root(places, name)
    for directory in (lower, root):
        directory.mkdir(parents=True, exist_ok=True)
    base = first_id(slot)
    namespace = kernel.user_namespace(base, IDS_PER_CONTAINER)
    try:
        kernel.mount_idmapped(str(places.images / serial / "rootfs"), str(lower), namespace)
    finally:
        os.close(namespace)
    upper, work = _layer(places, name, serial, lower)
    options = f"lowerdir={lower},upperdir={upper},workdir={work},index=off,metacopy=off"
    kernel.mount("overlay", str(root), "overlay", kernel.MS_NODEV | kernel.MS_NOSUID, options)
    return root


def unmount_root(places: Places, name: str) -> None:
    """Take the root of a container apart; one that is not there is fine."""
    for part in ("rootfs", "lower"):
        with contextlib.suppress(OSError):
            kernel.unmount(str(places.run / name / part), lazy=True)


def prepare_persistent(places: Places, name: str, path: str, slot: int, user: User) -> Path:
    """Make a lasting directory, owned at first by who the container runs as; returns where. Raises OSError."""
    directory = places.persistent(name, path)
    if not directory.exists():
        directory.mkdir(parents=True, mode=0o755)
        os.chown(directory, first_id(slot) + user.uid, first_id(slot) + user.gid)
    return directory


def discard_layers(places: Places) -> None:
    """Put every writable layer out of use, at once however large; `remove_discarded` frees the room. Raises OSError."""
    layers = places.data / "layers"
    if layers.exists():
        places.discarded.mkdir(exist_ok=True)
        layers.rename(places.discarded / str(time.monotonic_ns()))


def remove_discarded(places: Places) -> None:
    """Delete what was put out of use, in this boot or an earlier one. Raises OSError; blocks."""
    if places.discarded.exists():
        shutil.rmtree(places.discarded)


def _layer(places: Places, name: str, serial: str, lower: Path) -> tuple[Path, Path]:
    layer = places.layer(name, serial)
    if layer.parent.exists():
        for other in layer.parent.iterdir():
            if other.name != serial:
                shutil.rmtree(other)  # A layer means nothing over another image.
    upper, work = layer / "upper", layer / "work"
    if not upper.exists():
        work.mkdir(parents=True, exist_ok=True)
        upper.mkdir()
        owner = lower.stat()
        os.chown(upper, owner.st_uid, owner.st_gid)
        upper.chmod(owner.st_mode & 0o7777)
    return upper, work


def _mount_images_directory(images: Path) -> None:
    # The guest's own root is read-only: mount points for images lie on a small file system of their own.
    if not images.is_mount():
        kernel.mount("tmpfs", str(images), "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=1m")
