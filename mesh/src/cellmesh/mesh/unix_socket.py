"""Unix sockets that nobody else holds.

gRPC binds a path that another process serves on by taking its name away, without a word; a lock beside the socket makes
that an error.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# sockaddr_un holds 107 bytes and a NUL; the room left is for `_<port>` and for the lock.
MAX_PATH_BYTES = 100


class SocketUnavailable(OSError):
    """A socket cannot be served on; the message says why and what to do."""


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Hold the right to serve on `path`, with what a dead process left there removed; raise SocketUnavailable."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise SocketUnavailable(
            errno.ENAMETOOLONG,
            f"{path} is longer than the {MAX_PATH_BYTES} bytes a unix socket may have. Use a shorter run directory.",
        )
    lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SocketUnavailable(
                errno.EADDRINUSE, f"{path} is served by another process. Stop that one, or use another run directory."
            ) from None
        _remove_stale(path)
        yield
    finally:
        # The lock's file stays: removing it would let two processes hold locks on two files of one name.
        os.close(lock)


@contextmanager
def closed() -> Iterator[None]:
    """Keep what is bound inside our own, whatever our umask: who may connect is said by `hand_over`, a moment later."""
    # Not stricter: files and directories that a thread makes meanwhile lose nothing that they need.
    mask = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(mask)


def hand_over(path: Path, *, mode: int | None = None, owner: tuple[int, int] | None = None) -> None:
    """Set who may connect to a bound socket: connecting takes the right to write. An owner's -1 leaves what is."""
    if owner is not None:
        os.chown(path, *owner, follow_symlinks=False)
    if mode is not None:
        path.chmod(mode)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketUnavailable(errno.EEXIST, f"{path} exists and is not a socket. Look what it is, then remove it.")
    path.unlink()
