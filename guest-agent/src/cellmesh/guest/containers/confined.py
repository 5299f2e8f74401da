"""Files of an image or a container, found as a process inside its root would find them, and read without a wait."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cellmesh.guest import kernel

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class NotReadable(Exception):
    """A file is there and cannot be read as text; the message says what it is."""


@contextlib.contextmanager
def opened(root: int | Path, path: str, flags: int = 0) -> Iterator[int]:
    """Give an O_PATH descriptor of `path` below `root`, links resolved inside; raises OSError.

    O_PATH opens nothing: no FIFO waits and no device notices.
    """
    if isinstance(root, Path):
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = kernel.open_in_root(directory, path, os.O_PATH | flags)
        finally:
            os.close(directory)
    else:
        found = kernel.open_in_root(root, path, os.O_PATH | flags)
    try:
        yield found
    finally:
        os.close(found)


def read_file(root: Path, path: str, limit: int) -> str:
    """Return the text of a regular file of at most `limit` bytes; raises NotReadable, and OSError if it is not there.

    Bytes that are not UTF-8 become U+FFFD.
    """
    with opened(root, path) as found:
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode):
            raise NotReadable(f"/{path} is {kind_of(status.st_mode)}, not a regular file")
        with Path(f"/proc/self/fd/{found}").open("rb") as file:
            content = file.read(limit + 1)
    if len(content) > limit:
        raise NotReadable(f"/{path} is larger than {limit >> 10} KiB")
    return content.decode("utf-8", "replace")


def kind_of(mode: int) -> str:
    """Return what kind of file a mode is of, with its article."""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "a regular file")
