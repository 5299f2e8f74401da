"""A program on a terminal of its own, with a test for the person in front of it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

SECONDS = 120.0
_BLOCK = 4096


class Terminal:
    """Types, reads the screen and changes the window's size."""

    def __init__(self, master: int, slave: int) -> None:
        self._master = master
        self._slave = slave
        self._process: asyncio.subprocess.Process | None = None
        self.first_modes = self.modes
        """How it was set before any program ran on it."""
        self._screen = b""
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        self._screen += os.read(self._master, _BLOCK)
        self._changed.set()

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def resize(self, rows: int, columns: int) -> None:
        """Change the window's size."""
        resize(self._slave, rows, columns)

    @property
    def modes(self) -> list[Any]:
        """Return how the terminal is set."""
        return termios.tcgetattr(self._slave)

    async def read_until(self, wanted: bytes) -> bytes:
        """Return what was shown up to and with `wanted`; it will not be found again."""
        async with asyncio.timeout(SECONDS):
            while wanted not in self._screen:
                self._changed.clear()
                await self._changed.wait()
        before, _, self._screen = self._screen.partition(wanted)
        return before + wanted

    async def ended(self) -> int:
        """Wait until the program has ended; return its exit code."""
        assert self._process is not None
        async with asyncio.timeout(SECONDS):
            return await self._process.wait()

    async def run(self, *argv: str, environment: Mapping[str, str]) -> None:
        """Run a program on it."""
        self._process = await asyncio.create_subprocess_exec(
            *("setsid", "--ctty", "--wait", *argv),
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=environment,
        )

    async def end(self) -> None:
        """Kill the program if it still runs, and read no more."""
        asyncio.get_running_loop().remove_reader(self._master)
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def resize(terminal: int, rows: int, columns: int) -> None:
    """Set the size of a terminal; who is in its foreground hears of it."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@asynccontextmanager
async def on_terminal(*argv: str, environment: Mapping[str, str], rows: int, columns: int) -> AsyncIterator[Terminal]:
    """Run a program inside; it is killed afterwards if it still runs."""
    master, slave = pty.openpty()
    try:
        resize(slave, rows, columns)
        terminal = Terminal(master, slave)
        try:
            await terminal.run(*argv, environment=environment)
            yield terminal
        finally:
            await terminal.end()
    finally:
        os.close(master)
        os.close(slave)
