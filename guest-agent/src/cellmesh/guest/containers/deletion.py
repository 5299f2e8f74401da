"""A program of its own that deletes what lies in one directory, in memory that no tree can make it exceed.

Nothing is entered deeper than one level: a directory's own directories are moved up beside it before it is removed. So
neither depth nor width costs memory or open files, and a deletion that was interrupted goes on where it was.
"""

import errno
import os
import sys
from pathlib import Path

_PENDING = 1024  # Directories remembered to be emptied next; the others are found again in the next pass.
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Deletion:
    """Empties one directory, which nothing else changes except by adding to it."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._prefix = os.urandom(6).hex()
        self._moved = 0
        self._removed = 0
        self._pending: list[bytes] = []

    def run(self) -> bool:
        """Delete all that can be deleted; returns True if nothing is left. Raises OSError if it cannot be read."""
        while True:
            before, left = self._removed, False
            with os.scandir(self._top) as entries:
                for entry in entries:
                    left = True
                    self._remove(os.fsencode(entry.name))
                    while self._pending:
                        self._remove(self._pending.pop())
            if not left:
                return True
            if self._removed == before:
                return False

    def _remove(self, name: bytes) -> None:
        """Remove one entry of the top; what cannot be removed now stays."""
        try:
            directory = os.open(name, _FLAGS, dir_fd=self._top)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                self._unlink(name, self._top)
            return
        try:
            self._empty(directory)
        except OSError:
            return  # A damaged directory must not keep the others from being deleted.
        finally:
            os.close(directory)
        try:
            os.rmdir(name, dir_fd=self._top)
            self._removed += 1
        except OSError:
            return

    def _empty(self, directory: int) -> None:
        with os.scandir(directory) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    self._move_up(name, directory)
                else:
                    self._unlink(name, directory)

    def _unlink(self, name: bytes, directory: int) -> None:
        try:
            os.unlink(name, dir_fd=directory)
            self._removed += 1
        except OSError:
            return

    def _move_up(self, name: bytes, directory: int) -> None:
        try:
            os.rmdir(name, dir_fd=directory)
            self._removed += 1
        except OSError:
            self._moved += 1
            moved = f"{self._prefix}-{self._moved}".encode()
            try:
                os.rename(name, moved, src_dir_fd=directory, dst_dir_fd=self._top)
            except OSError:
                return  # A full disk has no room for the new name until something else is deleted.
            self._removed += 1  # It lies one level higher, which is progress too.
            if len(self._pending) < _PENDING:
                self._pending.append(moved)


def main(directory: str, cgroup: str = "") -> int:
    """Join the cgroup, empty the directory; returns 0 if nothing is left."""
    if cgroup:
        Path(cgroup, "cgroup.procs").write_text("0")
        Path("/proc/self/oom_score_adj").write_text("1000")
    top = os.open(directory, _FLAGS)
    try:
        return 0 if Deletion(top).run() else 1
    finally:
        os.close(top)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
