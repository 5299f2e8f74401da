"""The console of a guest: read from a FIFO, the newest 64 KiB kept in a file, the rest counted and dropped.

A guest may print for ever; the host's disk and this process stay as small as they are.
"""

from __future__ import annotations

import os
from contextlib import suppress

KEPT = 64 << 10
"""How much of a console is kept, in bytes."""
_READ = 64 << 10
_PER_SECOND = 4 << 20  # more than any boot prints; beyond it the guest waits in its own write


class Console:
    """Drains `console.fifo` into `console.log` of one directory."""

    def __init__(self, directory: str) -> None:
        self._log = os.path.join(directory, "console.log")  # noqa: PTH118 - pathlib would double the start-up time
        fifo = os.path.join(directory, "console.fifo")  # noqa: PTH118
        with suppress(FileExistsError):  # a bridge before us made it, and the VMM holds it open
            os.mkfifo(fifo, 0o600)
        # Both ends: cloud-hypervisor's open for writing blocks without a reader, and ours must see no end of file.
        self.fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._kept = bytearray(self._before())
        self._budget = _PER_SECOND
        self._dirty = False
        self.received = 0
        self.dropped = 0

    def drain(self) -> bool:
        """Read what is there; return False when this second's share is used up."""
        while self._budget > 0:
            try:
                chunk = os.read(self.fd, _READ)
            except BlockingIOError:
                return True
            self._budget -= len(chunk)
            self.received += len(chunk)
            self._kept += chunk
            if (over := len(self._kept) - KEPT) > 0:
                del self._kept[:over]
                self.dropped += over
            self._dirty = True
        return False

    @property
    def dirty(self) -> bool:
        """Whether the file is older than what was read."""
        return self._dirty

    def flush(self) -> None:
        """Replace the file by what is kept and allow another second's share; to be called once a second at most."""
        self._budget = _PER_SECOND
        if not self._dirty:
            return
        temporary = f"{self._log}.new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, self._kept)
        finally:
            os.close(fd)
        os.replace(temporary, self._log)  # noqa: PTH105
        self._dirty = False

    def _before(self) -> bytes:
        try:
            fd = os.open(self._log, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            return os.read(fd, KEPT)
        finally:
            os.close(fd)
