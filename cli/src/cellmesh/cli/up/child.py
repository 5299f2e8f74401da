"""A program of the node that is started again whenever it ends."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cellmesh.cli.text import printable

_FIRST_WAIT = 0.25
_LONGEST_WAIT = 15.0
_GOOD_RUN_SECONDS = 30.0
"""After a run this long the waits begin anew."""
_LOG_LINES = 20
_LOG_BYTES = 16 * 1024
_LOG_MODE = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    """Where what it says goes, behind what is there."""
    descriptors: tuple[int, ...] = ()
    """What it inherits beside its standard files."""


class Child:
    """One program: started, started again after a wait that doubles, and ended."""

    def __init__(self, program: Program, *, tell: Callable[[str], None]) -> None:
        self._program = program
        self._tell = tell
        self._process: asyncio.subprocess.Process | None = None
        self._started = 0.0
        self.name = program.name
        self.log = program.log
        self.restarts = 0

    @property
    def pid(self) -> int:
        """Return its process id, 0 while it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    @property
    def exit_code(self) -> int | None:
        """Return the exit code of its last run, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start it."""
        program = self._program
        with open_log(program.log) as sink:
            self._process = await asyncio.create_subprocess_exec(
                *program.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd="/",
                env=dict(program.environment),
                # Ctrl-C is for us to pass on, once it is time.
                start_new_session=True,
                # As in its systemd unit: an access log is nobody else's to read.
                umask=0o077,
                pass_fds=program.descriptors,
            )
        self._started = time.monotonic()

    async def keep(self) -> None:
        """Start it again whenever it ends, until cancelled."""
        wait = _FIRST_WAIT
        while True:
            code = await self.wait()
            if time.monotonic() - self._started >= _GOOD_RUN_SECONDS:
                wait = _FIRST_WAIT
            self._tell(f"{self.name} ended with exit code {code}; it is started again. Its log is {self._program.log}.")
            await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311  # spreads restarts, hides nothing
            wait = min(2 * wait, _LONGEST_WAIT)
            self.restarts += 1
            await self.start()

    async def wait(self) -> int:
        """Wait until this run of it ends, and return its exit code."""
        return 0 if self._process is None else await self._process.wait()

    async def stop(self, seconds: float) -> None:
        """End it gracefully, by force after `seconds`."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def last_words(self) -> tuple[str, ...]:
        """Return the end of its log, made safe for a terminal."""
        return last_words(self._program.log)


def open_log(path: Path) -> BinaryIO:
    """Open a log to append to it, made readable by its owner only. Raises OSError, also for a symbolic link.

    VMs and the edge run under other uids and pass through the directory of the logs.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, _LOG_MODE)
    os.fchmod(descriptor, _LOG_MODE)
    return os.fdopen(descriptor, "ab")


def last_words(log: Path) -> tuple[str, ...]:
    """Return the last lines of a log, made safe for a terminal; none if there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
            lines = file.read().decode("utf-8", "backslashreplace").splitlines()[-_LOG_LINES:]
    except FileNotFoundError:
        return ()
    return tuple(map(printable, lines))
