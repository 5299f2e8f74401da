r"""The one line that opens a host connection: `CONNECT <port>\n`, in whatever pieces it comes."""

from __future__ import annotations

import socket

_LONGEST = 32
_VERB = b"connect "


class BadCommandError(Exception):
    """The peer hung up or did not say `CONNECT <port>`."""


class CommandReader:
    """Collects the line and leaves every byte after it in the socket."""

    def __init__(self, host: socket.socket) -> None:
        self.host = host
        self._line = b""

    def read(self) -> int | None:
        """Return the port once the line is whole, None before; raises BadCommandError."""
        try:
            peeked = self.host.recv(_LONGEST - len(self._line), socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError as error:
            raise BadCommandError from error
        if not peeked:
            raise BadCommandError
        end = peeked.find(b"\n")
        self._line += self.host.recv(len(peeked) if end < 0 else end + 1)
        if not _VERB.startswith(self._line[: len(_VERB)].lower()):
            raise BadCommandError
        if end >= 0:
            return self._port()
        if len(self._line) >= _LONGEST:
            raise BadCommandError
        return None

    def _port(self) -> int:
        digits = self._line[len(_VERB) :].strip()
        if not digits.isdigit() or int(digits) > 0xFFFFFFFF:
            raise BadCommandError
        return int(digits)
