"""What tests of the bridge do all the time."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from cellmesh.hypervisor.bridge.client import BridgeClient
from support import hybrid

UID = 300_001
PORT = 1024
MIB = 1 << 20
QUIET = {
    "port": PORT,
    **dict.fromkeys(("open", "connections", "refused", "failed", "to_guest_bytes", "from_guest_bytes"), 0),
}


def dial(directory: Path, path: Path | None = None) -> socket.socket:
    """Connect to a listener, the agent's if none is named."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(60)
        connection.connect(str(path or directory / "in/agent.1"))
    except BaseException:
        connection.close()
        raise
    return connection


@asynccontextmanager
async def occupied(directory: Path, count: int, path: Path | None = None) -> AsyncIterator[None]:
    """Hold so many connections to a guest that says "in", each made once the one before was answered.

    Hundreds at once would keep each other waiting, and the bridge gives up on whom the guest does not take in time.
    """
    with ExitStack() as held:
        for _ in range(count):
            connection = held.enter_context(dial(directory, path))
            assert await asyncio.to_thread(connection.recv, 2) == b"in"
        yield


async def give(client: BridgeClient, path: Path, name: str, *, limit: int = 8) -> None:
    """Bind a socket and hand it to the bridge."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(512)
        await client.give(listener, name, PORT, limit=limit)


def stats_of(stats: Mapping[str, object], name: str) -> Mapping[str, int]:
    """Return what a bridge says of one listener."""
    listeners = stats["listeners"]
    assert isinstance(listeners, dict)
    found: Mapping[str, int] = listeners[name]
    return found


async def until_open(client: BridgeClient, count: int) -> None:
    """Wait until a bridge carries so many connections."""
    async with asyncio.timeout(60):
        while (await client.stats())["open"] != count:  # noqa: ASYNC110 - as in until()
            await asyncio.sleep(0.01)


def noise(seed: int, size: int) -> bytes:
    """Return bytes that repeat nowhere, the same on every run."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - nothing secret


def holding(release: threading.Event, first: bytes = b"") -> hybrid.Guest:
    """Return a guest that says something and then reads nothing until it is released."""

    def guest(connection: socket.socket) -> None:
        connection.sendall(first)
        release.wait(60)

    return guest


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side ends its half."""
    return b"".join(iter(lambda: connection.recv(MIB), b""))


async def until(holds: Callable[[], bool]) -> None:
    """Poll until a condition holds; the deadline is far beyond any load."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - what another process does sets no event here
            await asyncio.sleep(0.01)


def resident(pid: int) -> int:
    """Return a process's resident memory in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
