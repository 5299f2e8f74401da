"""The system calls Python has no function for, by libc."""

import ctypes
import errno
import os
from collections.abc import Iterable
from typing import NoReturn

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_NOATIME = 1024
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_MOUNT_SETATTR = 442
_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_OPENAT2_TRIES = 32
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x00100000
_IN_MODIFY = 2
_FAN_CLASS_CONTENT = 4
_FAN_CLOEXEC = 1
_FAN_MARK_ADD = 1
_FAN_MARK_FILESYSTEM = 0x100
_FAN_OPEN_EXEC_PERM = 0x40000
_RB_POWER_OFF = 0x4321FEDC

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def mount(source: str, target: str, filesystem: str, flags: int = 0, data: str = "") -> None:
    """Mount `source` on `target`; raises OSError naming the target."""
    arguments = (source.encode(), target.encode(), filesystem.encode(), ctypes.c_ulong(flags), data.encode())
    _checked(_libc.mount(*arguments), target)


def unmount(target: str, *, lazy: bool = False) -> None:
    """Unmount `target`, at once even if busy when `lazy`; raises OSError."""
    _checked(_libc.umount2(target.encode(), MNT_DETACH if lazy else 0), target)


def mount_idmapped(source: str, target: str, user_namespace: int) -> None:
    """Show the directory `source` at `target` with owners shifted by the user namespace of that descriptor."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    tree = _checked(_libc.syscall(_OPEN_TREE, _AT_FDCWD, source.encode(), flags), source)
    try:
        attr = _MountAttr(attr_set=_MOUNT_ATTR_IDMAP, userns_fd=user_namespace)
        size = ctypes.c_size_t(ctypes.sizeof(attr))
        _checked(_libc.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attr), size), source)
        moved = _libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, target.encode(), _MOVE_MOUNT_F_EMPTY_PATH)
        _checked(moved, target)
    finally:
        os.close(tree)


def open_in_root(root: int, path: str, flags: int) -> int:
    """Open `path` as a process would whose root directory is the descriptor `root`: no link leads outside it.

    Returns a descriptor; raises OSError.
    """
    how = _OpenHow(flags=flags | os.O_CLOEXEC, resolve=_RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    for _ in range(_OPENAT2_TRIES):
        opened: int = _libc.syscall(_OPENAT2, root, os.fsencode(path), ctypes.byref(how), size)
        # EAGAIN: a rename or mount elsewhere in the machine met a `..` of this path.
        if opened >= 0 or ctypes.get_errno() != errno.EAGAIN:
            break
    return _checked(opened, path)


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces; raises OSError."""
    _checked(_libc.unshare(flags), "unshare")  # os.unshare is of Python 3.12; tests import this under 3.11.


def enter_network(namespace: int) -> None:
    """Move the calling thread into the network namespace of that descriptor; raises OSError."""
    _checked(_libc.setns(namespace, CLONE_NEWNET), "setns")


def user_namespace(base: int, size: int) -> int:
    """Return a descriptor of a new user namespace in which 0 is `base`, for `size` ids."""
    ready, tell_ready = os.pipe()
    leave, tell_leave = os.pipe()
    child = os.fork()  # Only unshares and waits: nothing of the parent's threads or locks is needed there.
    if child == 0:
        _wait_in_user_namespace(tell_ready, leave, tell_leave)
    try:
        os.close(tell_ready)
        number = int.from_bytes(os.read(ready, 4) or b"\xff", "little")
        if number:
            raise OSError(number, os.strerror(number), "user namespace")
        for kind in ("uid_map", "gid_map"):
            _write(f"/proc/{child}/{kind}", f"0 {base} {size}")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for descriptor in (ready, leave, tell_leave):
            os.close(descriptor)


def _wait_in_user_namespace(ready: int, leave: int, other_end: int) -> NoReturn:
    try:
        os.close(other_end)
        result = _libc.unshare(CLONE_NEWUSER)
        os.write(ready, (ctypes.get_errno() if result else 0).to_bytes(4, "little"))
        os.read(leave, 1)
    finally:
        os._exit(0)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def watch_changes() -> int:
    """Return a non-blocking inotify descriptor, readable after a file given to `watch_file` changed."""
    return _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")


def watch_file(watcher: int, path: str) -> int:
    """Watch one file for changes; returns the watch's number."""
    return _checked(_libc.inotify_add_watch(watcher, path.encode(), _IN_MODIFY), path)


def hold_programs(paths: Iterable[str]) -> int:
    """Keep programs on the file systems of `paths` from starting until the returned descriptor is closed.

    Who starts one waits, however many wait; the kernel lets all go on at the close. Raises OSError.
    """
    gate = _checked(_libc.fanotify_init(_FAN_CLASS_CONTENT | _FAN_CLOEXEC, os.O_RDONLY | os.O_CLOEXEC), "fanotify_init")
    try:
        for path in paths:
            mask = ctypes.c_uint64(_FAN_OPEN_EXEC_PERM)
            flags = _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM
            _checked(_libc.fanotify_mark(gate, flags, mask, _AT_FDCWD, path.encode()), path)
    except OSError:
        os.close(gate)
        raise
    return gate


def power_off() -> None:
    """Flush the disks and power the machine off; does not return on success."""
    os.sync()
    _checked(_libc.reboot(_RB_POWER_OFF), "reboot")
