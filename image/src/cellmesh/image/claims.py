"""Directories for unfinished work: locked while their process lives, removed once it died. Locks between processes."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DRAFT = ".draft-"
SPOOL = ".spool-"
SCRATCH = ".work-"


@contextmanager
def claimed(root: Path, prefix: str) -> Iterator[Path]:
    """Give a fresh directory below `root` that is gone afterwards; first remove those that dead processes left there.

    The kernel drops the lock of a process that dies, however it dies.
    """
    with locked(root):  # so that a new directory is never seen without its lock
        _sweep(root)
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(descriptor)


def _sweep(root: Path) -> None:
    for prefix in (DRAFT, SPOOL, SCRATCH):
        for path in root.glob(f"{prefix}*"):
            with suppress(OSError), locked(path, wait=False):  # its owner has just finished, or is alive
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def locked(directory: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a directory against other processes and threads; raises BlockingIOError rather than wait."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
