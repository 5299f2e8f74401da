"""The terminal of the person."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from cellmesh.api.common.v1 import exec_pb2

_MOST = 4096


@contextmanager
def raw_mode(descriptor: int) -> Iterator[None]:
    """Hand every key to the command, Ctrl-C too, and give the terminal back as it was."""
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def size_of(descriptor: int) -> exec_pb2.TerminalSize:
    """Return a terminal's size, within what the contract allows."""
    size = os.get_terminal_size(descriptor)
    return exec_pb2.TerminalSize(rows=min(max(size.lines, 1), _MOST), columns=min(max(size.columns, 1), _MOST))
