"""Hearing from the kernel that it killed for memory."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from cellmesh.guest import kernel


class MemoryWatch:
    """Watches memory.events of cgroups; a watch ends with its cgroup."""

    def __init__(self) -> None:
        self._watcher = kernel.watch_changes()

    def add(self, cgroup: Path) -> None:
        """Watch one cgroup too; raises OSError."""
        kernel.watch_file(self._watcher, str(cgroup / "memory.events"))

    def attach(self, changed: Callable[[], None]) -> None:
        """Call `changed` in the running loop after each change."""

        def read() -> None:
            # What changed is read from the files; the events only say that something did.
            with contextlib.suppress(BlockingIOError):
                os.read(self._watcher, 4096)
            changed()

        asyncio.get_running_loop().add_reader(self._watcher, read)
