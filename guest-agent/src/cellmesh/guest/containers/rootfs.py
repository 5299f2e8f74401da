"""A container's root: its read-only image below, a writable layer of its own above, both with its own ids.

The image's owners are shifted by an idmapped mount, so a first start touches no file, however large the image.
"""

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cellmesh.guest import boot, disks, kernel
from cellmesh.guest.containers import quotas
from cellmesh.guest.containers.bundle import IDS_PER_CONTAINER, first_id
from cellmesh.guest.containers.runtime import ImageBusy, ImageMissing, NoRoom
from cellmesh.guest.containers.users import User

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_RELEASE_WAIT = 2.0  # Seconds in which the kernel may still write back for, or close, what was just unmounted.
_RELEASE_POLL = 0.02
_HOT_PLUG_WAIT = 15.0  # Half of what the host waits for a start; a busy kernel takes seconds to find a disk.


NO_ROOM = (
    "the VM's data disk, or the container's share of it, is full: delete files in its containers, remove a container "
    "or recycle the VM, then start again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where roots are put together: image mounts, what lasts on the data disk, what does not."""

    images: Path = Path("/images")
    data: Path = Path("/data")
    run: Path = Path("/run/cellmesh/containers")

    @property
    def discarded(self) -> Path:
        """Where layers wait to be deleted."""
        return self.data / boot.DISCARDED

    def layers(self, name: str) -> Path:
        """Return where a container's writable layers lie."""
        return self.data / "layers" / name

    def layer(self, name: str, serial: str) -> Path:
        """Return where a container's writable layer over this image lies."""
        return self.layers(name) / serial

    def lasting(self, name: str) -> Path:
        """Return where a container's lasting directories lie."""
        return self.data / "persist" / name

    def persistent(self, name: str, path: str) -> Path:
        """Return where one lasting directory of a container lies; `+` is in no path the contract allows."""
        return self.lasting(name) / path.strip("/").replace("/", "+")

    def all_files(self) -> Iterator[Path]:
        """Yield the directories that hold the files of containers."""
        for kind in ("layers", "persist"):
            yield from (self.data / kind).glob("*")


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


def release_image(places: Places, serial: str) -> None:
    """Unmount the image with this serial, so that its disk may go; one that is not mounted is fine; blocks.

    Raises ImageBusy if anything still reads from it, and OSError.
    """
    target = places.images / serial
    if target.is_mount():
        try:
            kernel.unmount(str(target))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise ImageBusy("its file system is in use") from error
    with contextlib.suppress(FileNotFoundError):
        target.rmdir()
    device = disks.find_disk(serial)
    if device is not None:
        _wait_until_unused(device)


def _wait_until_unused(device: str) -> None:
    deadline = time.monotonic() + _RELEASE_WAIT
    while True:
        try:
            # The kernel grants this only while no file system is mounted from the disk, by any mount of it.
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if time.monotonic() >= deadline:
                raise ImageBusy("a process still uses its file system") from error
            time.sleep(_RELEASE_POLL)
        else:
            return


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
    with data_disk():
        _make_counted(places.layers(name), slot)
        is_new = not (places.layer(name, serial) / "upper").exists()
        quotas.share_out(places.data, places.all_files(), anew=_project(slot) if is_new else 0)
        upper, work = _layer(places, name, serial, lower)
    options = f"lowerdir={lower},upperdir={upper},workdir={work},index=off,metacopy=off"
    kernel.mount("overlay", str(root), "overlay", kernel.MS_NODEV | kernel.MS_NOSUID, options)
    return root


def unmount_root(places: Places, name: str) -> None:
    """Take the root of a container apart; one that is not there is fine."""
    for part in ("rootfs", "lower"):
        with contextlib.suppress(OSError):
            kernel.unmount(str(places.run / name / part), lazy=True)


@contextlib.contextmanager
def data_disk() -> Iterator[None]:
    """Raise NoRoom for an OSError that says that the data disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise NoRoom(NO_ROOM) from error
        raise


def prepare_persistent(places: Places, name: str, path: str, slot: int, user: User) -> Path:
    """Make a lasting directory, owned at first by the container's user; returns where. Raises NoRoom and OSError."""
    directory = places.persistent(name, path)
    if not directory.exists():
        with data_disk():
            _make_counted(directory.parent, slot)
            # It gets its name when it is whole: one that was left half made would keep a wrong owner for ever.
            fresh = directory.with_name(f".{directory.name}")
            fresh.mkdir(mode=0o755, exist_ok=True)
            os.chown(fresh, first_id(slot) + user.uid, first_id(slot) + user.gid)
            fresh.rename(directory)
    return directory


def discard_layers(places: Places) -> None:
    """Put every writable layer out of use, at once however large. Raises OSError."""
    _discard(places, places.data / "layers")


def discard_container(places: Places, name: str, *, persistent: bool) -> bool:
    """Put a container's layers out of use, and with `persistent` its lasting directories.

    Returns True if no file of it is left in use. Raises OSError.
    """
    _discard(places, places.layers(name))
    lasting = places.lasting(name)
    if persistent:
        _discard(places, lasting)
    quotas.share_out(places.data, places.all_files())
    return not lasting.exists()


def _discard(places: Places, path: Path) -> None:
    if not path.exists():
        return
    places.discarded.mkdir(exist_ok=True)
    for attempt in itertools.count(time.monotonic_ns()):
        target = places.discarded / str(attempt)
        if not target.exists():
            path.rename(target)
            return


def _make_counted(directory: Path, slot: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    quotas.count_for(directory, _project(slot))


def _project(slot: int) -> int:
    return slot + 1  # 0 is what belongs to no container.


def _layer(places: Places, name: str, serial: str, lower: Path) -> tuple[Path, Path]:
    layer = places.layer(name, serial)
    if layer.parent.exists():
        for other in layer.parent.iterdir():
            if other.name != serial:
                _discard(places, other)  # A layer means nothing over another image.
    upper, work = layer / "upper", layer / "work"
    if not upper.exists():
        work.mkdir(parents=True, exist_ok=True)
        fresh = layer / "fresh"
        fresh.mkdir(exist_ok=True)
        owner = lower.stat()
        os.chown(fresh, owner.st_uid, owner.st_gid)
        fresh.chmod(owner.st_mode & 0o7777)
        fresh.rename(upper)
    return upper, work


def _mount_images_directory(images: Path) -> None:
    # The guest's own root is read-only: mount points for images lie on a small file system of their own.
    if not images.is_mount():
        kernel.mount("tmpfs", str(images), "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=1m")
