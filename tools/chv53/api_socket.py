"""The API socket and the lock beside it: who holds the lock may take the socket's path."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
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
    """Serve each connection in a task of its own until cancelled; all of them, and the listener, end with this."""
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    # A task that is cancelled before it first runs closes nothing, so what it was to close is kept here as well.
    unserved: set[socket.socket] = set()
    loop.add_reader(listener, arrived.set)
    try:
        async with asyncio.TaskGroup() as group:
            while True:
                await arrived.wait()
                arrived.clear()
                for end in _accepted(listener):
                    unserved.add(end)
                    group.create_task(_serve(serve, end, unserved))
    finally:
        stop_listening(listener)
        for end in unserved:
            end.close()


def stop_listening(listener: socket.socket) -> None:
    """Close a listener that a loop may still watch; once closed, its number may soon be another file's."""
    if listener.fileno() >= 0:
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    """Yield the connections that wait now."""
    while listener.fileno() >= 0:
        try:
            end, _address = listener.accept()
        except BlockingIOError:
            return
        end.setblocking(False)  # noqa: FBT003  # the standard library takes it so
        yield end


async def _serve(serve: Connection, end: socket.socket, unserved: set[socket.socket]) -> None:
    reader, writer = await asyncio.open_connection(sock=end)
    unserved.discard(end)
    try:
        await serve(reader, writer)
    except (ConnectionError, asyncio.IncompleteReadError):
        return  # the peer went away, which is its right
    finally:
        writer.close()
