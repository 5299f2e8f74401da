"""The API socket and the lock beside it: who holds the lock may take the socket's path."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

Connection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_BACKLOG = 128
_WHOLE_FILE = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
"""A lock of the open file, not of the process: one hub holds the locks of many VMs."""


class ApiSocketError(Exception):
    """The socket cannot be served on; the text is what goes to standard error."""

    def __init__(self, *causes: str) -> None:
        chain = "".join(
            f"\n  {number}: {cause}" for number, cause in enumerate(("Failed to start the VMM thread", *causes))
        )
        super().__init__(f"Error: Cloud Hypervisor exited with the following chain of errors:{chain}\n")


def take_lock(path: Path) -> int:
    """Take the lock of an API socket and remove what a crash left at its path; raises ApiSocketError."""
    try:
        lock = os.open(f"{path}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ApiSocketError(
            "Error creation API server's socket", f"{error.strerror} (os error {error.errno})"
        ) from error
    try:
        fcntl.fcntl(lock, fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except BlockingIOError as error:
        os.close(lock)
        raise ApiSocketError(f'API socket "{path}" is already in use by another running instance') from error
    path.unlink(missing_ok=True)
    return lock


def listen(path: Path) -> socket.socket:
    """Bind and listen; raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(path))
        path.chmod(0o700)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


async def accept_forever(listener: socket.socket, serve: Connection) -> None:
    """Serve each connection in a task of its own; all of them end with this one."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.TaskGroup() as group:
            while True:
                end, _address = await loop.sock_accept(listener)
                reader, writer = await asyncio.open_connection(sock=end)
                group.create_task(_serve(serve, reader, writer))
    finally:
        loop.remove_reader(listener)  # sock_accept's own clean-up comes later, when the number may be another file's
        listener.close()


async def _serve(serve: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await serve(reader, writer)
    except (ConnectionError, asyncio.IncompleteReadError):
        return  # the peer went away, which is its right
    finally:
        writer.close()
