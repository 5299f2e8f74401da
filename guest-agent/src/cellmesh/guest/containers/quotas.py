"""Shares of the data disk: the kernel counts what a container's files take as one project, and bounds each project.

What is made in a directory of a project belongs to it too; only the machine's root can move a file to another project.
A disk that was made without project quotas has no shares: its containers share its room as it comes.
"""

import ctypes
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Collection, Iterable
from pathlib import Path

_GET_ATTRIBUTES, _SET_ATTRIBUTES = 0x801C581F, 0x401C5820
_ATTRIBUTES = struct.Struct("=5I8x")  # struct fsxattr: flags, extent size, extents, project, another extent size
_INHERIT = 0x200
_QUOTACTL_FD = 443
_PROJECTS = 2
_GET_INFO, _GET_QUOTA, _SET_QUOTA = ((command << 8 | _PROJECTS) for command in (0x800005, 0x800007, 0x800008))
_QUOTA = struct.Struct("=8QI4x")  # struct if_dqblk: limit, soft limit and use in bytes, the same of files, times, valid
_LIMITS = 5
_BLOCK = 1024
_START_ROOM, _START_FILES = 1 << 20, 256
"""What a new layer takes before its program runs, bytes and files."""
_OFF = (errno.ESRCH, errno.ENOSYS, errno.ENOTTY, errno.EOPNOTSUPP)

_sharing = threading.Lock()  # Containers start side by side, and each bound is made from the one before.
_libc = ctypes.CDLL(None, use_errno=True)


def share(total: int, containers: int) -> int:
    """Return how much of the disk's room each of so many containers may use.

    A sixteenth of the disk is left for each of them when all the others have used theirs, and a thirty-second, which
    no container gets, for the agent and the file system itself.
    """
    return (total - total // 16 - total // 32) // max(containers - 1, 1)


def count_for(directory: Path, project: int) -> None:
    """Count what is made in a directory from now on for a project. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not _counted(descriptor):
            return
        flags, extent, extents, found, other = _attributes(descriptor)
        if found != project or not flags & _INHERIT:
            wanted = _ATTRIBUTES.pack(flags | _INHERIT, extent, extents, project, other)
            fcntl.ioctl(descriptor, _SET_ATTRIBUTES, wanted)
    finally:
        os.close(descriptor)


def bound(share: int, used: int, before: int, *, room: int, anew: bool) -> int:
    """Return what a project may use.

    One that has more than its share, as others came or what was discarded is not deleted yet, keeps that. It gets the
    room for a new layer when it starts `anew`; otherwise its bound never grows above the one before (0 is none).
    """
    wanted = max(share, used + room)
    return wanted if anew or not before else max(share, min(before, wanted))


def share_out(disk: Path, directories: Iterable[Path], *, anew: int = 0) -> None:
    """Bound each project that one of these directories is of to its share of the disk. Raises OSError.

    `anew` is the project of a container that starts with a new layer.
    """
    descriptor = os.open(disk, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not _counted(descriptor):
            return
        with _sharing:
            _set_bounds(descriptor, {_project(directory) for directory in directories} - {0}, anew)
    finally:
        os.close(descriptor)


def _set_bounds(descriptor: int, projects: Collection[int], anew: int) -> None:
    size = os.fstatvfs(descriptor)
    room = share(size.f_blocks * size.f_frsize, len(projects))
    files = share(size.f_files, len(projects))
    for project in projects:
        limit, _, used, files_limit, _, files_used, *_ = _quota(descriptor, project)
        is_anew = project == anew
        limit = bound(room, used, limit * _BLOCK, room=_START_ROOM, anew=is_anew) // _BLOCK
        files_limit = bound(files, files_used, files_limit, room=_START_FILES, anew=is_anew)
        _quotactl(descriptor, _SET_QUOTA, project, _QUOTA.pack(limit, 0, 0, files_limit, 0, 0, 0, 0, _LIMITS))


def _counted(descriptor: int) -> bool:
    try:
        _quotactl(descriptor, _GET_INFO, 0, bytes(24))
    except OSError as error:
        if error.errno in _OFF:
            return False
        raise
    return True


def _quota(descriptor: int, project: int) -> tuple[int, ...]:
    return _QUOTA.unpack(_quotactl(descriptor, _GET_QUOTA, project, bytes(_QUOTA.size)))


def _project(directory: Path) -> int:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _attributes(descriptor)[3]
    finally:
        os.close(descriptor)


def _attributes(descriptor: int) -> tuple[int, int, int, int, int]:
    found = fcntl.ioctl(descriptor, _GET_ATTRIBUTES, bytes(_ATTRIBUTES.size))
    flags, extent, extents, project, other = _ATTRIBUTES.unpack(found)
    return flags, extent, extents, project, other


def _quotactl(descriptor: int, command: int, project: int, data: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(data, len(data))
    arguments = ctypes.c_int(descriptor), ctypes.c_uint(command), ctypes.c_uint(project), buffer
    if _libc.syscall(ctypes.c_long(_QUOTACTL_FD), *arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "quotactl_fd")
    return buffer.raw
