"""Data disks, and the checks a file must pass before cloud-hypervisor opens it for a guest."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
from pathlib import Path

from cellmesh.hypervisor.vmm.errors import DiskRefused, InvalidVm, LaunchFailed, shown
from cellmesh.hypervisor.vmm.handle_file import sync_directory
from cellmesh.hypervisor.vmm.model import Disk
from cellmesh.hypervisor.vmm.process import tool

_SERIAL = re.compile(r"[A-Za-z0-9-]{1,20}", re.ASCII)
_MIN_DATA = 16 << 20
_MKE2FS_SECONDS = 300
_FORMAT = "ext4-projects"
"""Part of a template's name: another one when what follows changes."""
# The guest bounds its containers by project; projects need inodes of 256 bytes. One percent is for its agent alone.
_FEATURES = ("-O", "quota,project", "-I", "256", "-m", "1")
_EXTENDED = ("lazy_itable_init=1", "lazy_journal_init=1", "nodiscard", "quotatype=prjquota")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def check(disk: Disk) -> None:
    """Refuse a disk whose file somebody else could swap, or whose header asks for other files. Raises DiskRefused."""
    if not _SERIAL.fullmatch(disk.serial):
        raise DiskRefused(disk.path, f"has the serial {shown(disk.serial)!r}, not 1-20 letters, digits or dashes")
    if not disk.path.is_absolute() or disk.path != Path(os.path.realpath(disk.path)):
        raise DiskRefused(disk.path, "is, or lies behind, a symbolic link or is not absolute")
    for parent in disk.path.parents:
        mode = parent.stat().st_mode
        if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
            raise DiskRefused(disk.path, f"lies under {parent}, which others may write")
    try:
        descriptor = os.open(disk.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DiskRefused(disk.path, f"cannot be opened ({error.strerror})") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise DiskRefused(disk.path, "is not a regular file")
        if not disk.readonly and found.st_nlink != 1:
            raise DiskRefused(disk.path, "is writable and has a second name")
        if os.pread(descriptor, 4, 0) == b"QFI\xfb":
            raise DiskRefused(disk.path, "has a qcow2 header, and only raw disks are attached")
    finally:
        os.close(descriptor)


def ensure_data_disk(path: Path, *, size: int, templates: Path, uid: int | None) -> None:
    """Make a raw, sparse ext4 disk of `size` bytes for a VM's uid, unless it is there; blocks.

    A disk of another size is left as it is and refused: it holds somebody's data. Raises InvalidVm, LaunchFailed.
    """
    if size < _MIN_DATA or size % 4096:
        raise InvalidVm(f"A data disk of {size} bytes is too small or no multiple of 4096 bytes.")
    if path.exists():
        if (there := path.stat().st_size) != size:
            raise InvalidVm(f"The data disk {path} has {there} bytes, not {size}; a disk is not resized.")
        return
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    _copy_sparse(_template(templates, size), temporary)
    if uid is not None:
        os.chown(temporary, uid, uid)
    temporary.replace(path)
    sync_directory(path.parent)


def _template(templates: Path, size: int) -> Path:
    templates.mkdir(parents=True, exist_ok=True, mode=0o700)
    template = templates / f"{_FORMAT}-{size}.raw"
    if template.exists():
        return template
    mke2fs = tool("mke2fs")
    if mke2fs is None:
        raise LaunchFailed("mke2fs is needed to make data disks; install e2fsprogs.")
    # Two starts may make the same template at once: each its own file, the last rename wins with equal content.
    temporary = templates / f".{_FORMAT}-{size}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        temporary.touch(mode=0o600)
        os.truncate(temporary, size)
        options = ["-q", "-F", "-t", "ext4", *_FEATURES, "-E", ",".join(_EXTENDED)]
        done = subprocess.run(
            [mke2fs, *options, temporary], capture_output=True, env={}, timeout=_MKE2FS_SECONDS, check=False
        )
        if done.returncode:
            raise LaunchFailed(f"mke2fs could not make a disk of {size} bytes: {shown(done.stderr)}")
        temporary.replace(template)
    finally:
        temporary.unlink(missing_ok=True)
    return template


def _copy_sparse(source: Path, target: Path) -> None:
    """Copy only the extents that hold data, in the kernel, and wait until the disk has them."""
    with source.open("rb") as reading:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(reading.fileno()).st_size
            os.truncate(descriptor, size)
            end = 0
            while (start := _next_data(reading.fileno(), end)) is not None:
                end = os.lseek(reading.fileno(), start, os.SEEK_HOLE)
                _copy_extent(reading.fileno(), descriptor, start, end)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _next_data(descriptor: int, offset: int) -> int | None:
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def _copy_extent(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        copied = os.copy_file_range(source, target, end - start, offset_src=start, offset_dst=start)
        if not copied:
            raise LaunchFailed("The template of a data disk became shorter while it was copied.")
        start += copied
