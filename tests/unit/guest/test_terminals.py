"""How the agent comes by the terminal that crun made for a command."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellmesh.guest.containers.crun import _receive_terminal
from cellmesh.guest.containers.runtime import StartFailed

SECONDS = 20.0
pytestmark = pytest.mark.asyncio


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """Give the socket that crun is told to send a terminal to."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(f"{tmp_path}/tty")
        made.listen(1)
        made.settimeout(0)
        yield made


async def test_a_terminal_may_come_long_after_the_connection(listener: socket.socket) -> None:
    """A crun that was stopped between connecting and sending keeps nobody else waiting, and its terminal is taken."""
    receiving = asyncio.create_task(_receive_terminal(listener))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as crun:
        crun.connect(listener.getsockname())
        for _ in range(10):
            # Were the loop to wait for what is sent here, it would wait in vain.
            await asyncio.sleep(0.01)
        assert not receiving.done()
        master, slave = os.openpty()
        try:
            socket.send_fds(crun, [b"tty"], [master])
            async with asyncio.timeout(SECONDS):
                received = await receiving
            assert os.fstat(received).st_rdev == os.fstat(master).st_rdev
            os.close(received)
        finally:
            os.close(master)
            os.close(slave)


async def test_a_crun_that_ends_in_between_is_a_failed_start(listener: socket.socket) -> None:
    """A connection that ends without a terminal is told as a command that could not be started."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as crun:
        crun.connect(listener.getsockname())
    with pytest.raises(StartFailed, match="before it gave"):
        async with asyncio.timeout(SECONDS):
            await _receive_terminal(listener)
