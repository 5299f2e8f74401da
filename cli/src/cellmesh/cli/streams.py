"""The standard streams, which a parent may have closed, or which may lead to a full disk or a closed pipe."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from cellmesh.cli.errors import CliError, ExitCode

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDIN, _STDOUT, _STDERR = 0, 1, 2


class OutputLostError(CliError):
    """Standard output can't be written, such as to a full disk."""

    def __init__(self, error: OSError) -> None:
        what = f"Standard output could not be written: {error.strerror}."
        super().__init__(what, "", exit_code=ExitCode.OUTPUT_LOST, reason="OUTPUT_LOST")


def prepare() -> None:
    """Give this process three open descriptors, and streams over them that write any text and fail in one way.

    A closed stream leads to /dev/null: the next file that is opened would become standard output otherwise.
    """
    for descriptor in (_STDIN, _STDOUT, _STDERR):
        _open_if_closed(descriptor)
    if sys.stdin is None:
        sys.stdin = open(_STDIN, closefd=False)  # noqa: SIM115  # it lives as long as the process
    sys.stdout = _text(_Output(_STDOUT, on_failure=_raise), sys.stdout, line_buffering=os.isatty(_STDOUT))
    sys.stderr = _text(_Output(_STDERR, on_failure=_ignore), sys.stderr, line_buffering=True)


def discard(descriptor: int) -> None:
    """Let all that is written to the descriptor from now on go nowhere: it failed, and Python flushes at its exit."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    os.close(null)


def refuse_lost_output(descriptor: int, error: OSError) -> None:
    """Raise what a failed write means: nothing on standard error, where no failure can be told."""
    if descriptor != _STDERR:
        _raise(error)


class _Output(io.FileIO):
    """A standard descriptor for writing; after its first failure it leads to /dev/null."""

    def __init__(self, descriptor: int, *, on_failure: Callable[[OSError], None]) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._on_failure = on_failure

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some of `data` and return its count of bytes; waits where the parent left the descriptor non-blocking.

        Raises BrokenPipeError or OutputLostError.
        """
        try:
            while (count := super().write(data)) is None:
                select.select([], [self], [])
        except OSError as error:
            discard(self.fileno())
            self._on_failure(error)
            return memoryview(data).nbytes
        return count


def _open_if_closed(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)


def _text(raw: _Output, instead_of: object, *, line_buffering: bool) -> io.TextIOWrapper:
    encoding = instead_of.encoding if isinstance(instead_of, io.TextIOWrapper) else None
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=line_buffering
    )


def _raise(error: OSError) -> None:
    if isinstance(error, BrokenPipeError):
        raise error
    raise OutputLostError(error) from error


def _ignore(_: OSError) -> None:
    """Do nothing: standard error is where failures are told."""
