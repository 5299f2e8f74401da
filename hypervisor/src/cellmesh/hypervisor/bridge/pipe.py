"""Moving bytes from one unix socket to another without copying them."""

from __future__ import annotations

import fcntl
import os
import socket

_SIZE = 256 << 10  # as much as a socket holds


class TargetGone(Exception):
    """The target takes no more."""


class Pipe:
    """A pipe by which the kernel hands pages on; empty between two moves, so one serves all sockets of a thread."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, _SIZE)
        except PermissionError:
            return  # this user has many pipes: one of 64 KiB does too

    def move(self, source: socket.socket, target: socket.socket) -> tuple[int, bytes]:
        """Move what has come; return how much that was, and what of it the target has not taken.

        Neither socket blocks. Raises TargetGone, and OSError for the source.
        """
        count = os.splice(source.fileno(), self._in, _SIZE, flags=os.SPLICE_F_NONBLOCK)
        left = count
        try:
            while left:
                left -= os.splice(self._out, target.fileno(), left, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return count, os.read(self._out, left)
        except OSError as error:
            os.read(self._out, left)
            raise TargetGone from error
        return count, b""
