"""Reading and writing descriptors that are shared with other programs, so must stay in blocking mode."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable

from cellmesh.cli import streams

_READ_SIZE = 64 * 1024


async def read_some(descriptor: int) -> bytes:
    """Return the next bytes of a terminal, pipe or file; empty at its end."""
    loop = asyncio.get_running_loop()
    await _ready(descriptor, loop.add_reader, loop.remove_reader)
    try:
        return os.read(descriptor, _READ_SIZE)
    except OSError:
        # A terminal that hung up answers EIO: nothing more will come.
        return b""


async def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`; raises BrokenPipeError when the reader is gone, and OutputLostError."""
    loop = asyncio.get_running_loop()
    view = memoryview(data)
    while view:
        await _ready(descriptor, loop.add_writer, loop.remove_writer)
        # A pipe that is ready takes this much without blocking; more could stop the whole command.
        try:
            view = view[os.write(descriptor, view[: select.PIPE_BUF]) :]
        except BlockingIOError:
            # The descriptor is non-blocking, and another program that shares it filled it.
            continue
        except OSError as error:
            streams.discard(descriptor)
            streams.refuse_lost_output(descriptor, error)


async def _ready(
    descriptor: int, add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool]
) -> None:
    ready = asyncio.Event()
    try:
        add(descriptor, ready.set)
    except PermissionError:
        # A regular file can't be waited for, and is always ready.
        return
    try:
        await ready.wait()
    finally:
        remove(descriptor)
