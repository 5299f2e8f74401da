"""Deletes what was put out of use, in a process of its own: PID 1 neither waits for it nor pays for it."""

import asyncio
import sys
from pathlib import Path

from cellmesh.guest.boot import CGROUPS, say
from cellmesh.guest.reaper import Reaper

_PROGRAM = Path(__file__).with_name("deletion.py")
_PYTHON = sys.executable or "/usr/bin/python3"
_MEMORY = 64 << 20
_RETRY = 60.0  # Seconds until what could not be deleted is tried again.
_LIMITS = (("memory.max", str(_MEMORY)), ("pids.max", "4"), ("cpu.weight", "10"), ("io.weight", "default 10"))


class Discarded:
    """The directory of what is to be deleted; `run` empties it whenever `wake` was called."""

    def __init__(self, directory: Path, reaper: Reaper, *, cgroup: Path | None = Path(CGROUPS, "deletion")) -> None:
        self._directory = directory
        self._reaper = reaper
        self._cgroup = cgroup
        self._some = asyncio.Event()

    def wake(self) -> None:
        """Say that something was put there."""
        self._some.set()

    async def run(self) -> None:
        """Delete what is there and what comes, until cancelled."""
        while True:
            self._some.clear()
            pause = None if await self._delete() else _RETRY
            try:
                async with asyncio.timeout(pause):
                    await self._some.wait()
            except TimeoutError:
                continue

    async def _delete(self) -> bool:
        """Run the program once if there is anything to delete; returns True if nothing is left."""
        try:
            if not self._directory.exists() or not any(self._directory.iterdir()):
                return True
            argv = [_PYTHON, "-ISB", str(_PROGRAM), str(self._directory)]
            if self._cgroup is not None:
                self._limit(self._cgroup)
                argv.append(str(self._cgroup))
            program = self._reaper.spawn(argv)
        except OSError as error:
            say(f"what was discarded cannot be deleted: {error}")
            return False
        try:
            code = await asyncio.shield(program.exited)
        except asyncio.CancelledError:
            program.send_signal(9)
            raise
        if code:
            say(f"deleting what was discarded ended with code {code}; it is tried again in {_RETRY:.0f} s")
        return code == 0

    def _limit(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        for name, value in _LIMITS:
            try:
                (path / name).write_text(value)
            except OSError as error:
                say(f"{path.name}: {name} is not available: {error.strerror}")
