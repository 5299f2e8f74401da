"""Hypervisors in a tenth of the time: each is forked from a process that has imported everything and started nothing.

Run as a program it is that process. It reads a line of JSON for each hypervisor to start and answers with its pid.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cellmesh.hypervisor.vmm import process
from support import defects
from support.node import Node


class Forked:
    """A hypervisor that is not our child; of asyncio's Process it has what a Node uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ticks = process.start_ticks(pid) or 0

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        process.send_signal(self.pid, self._ticks, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait until it is gone; how it ended is known to its parent only."""
        await process.wait(self.pid, self._ticks)
        return 0

    @property
    def returncode(self) -> int | None:
        """Return 0 once it and all its threads have ended."""
        try:
            end = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return 0
        try:
            # Its parent collects it at once, so its number may be another's by now.
            is_another = process.start_ticks(self.pid) not in (None, self._ticks)
            return 0 if is_another or select.select([end], [], [], 0)[0] else None
        finally:
            os.close(end)


class ForkedNode(Node):
    """A node whose hypervisors are forked; `defect` is the name of what is wrong with them."""

    def __init__(self, directory: Path, vmm: Path, *, defect: str = "", **settings: object) -> None:
        super().__init__(directory, vmm, **settings)
        self.defect = defect
        self._zygote: asyncio.subprocess.Process | None = None

    async def spawn(self, **more: object) -> Any:
        """Fork a hypervisor, its log fresh."""
        if self._zygote is None:
            self._zygote = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__),
                env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self.log.write_bytes(b"")
        wanted = {"environment": self.environment(**more), "log": str(self.log), "defect": self.defect}
        self._zygote.stdin.write(json.dumps(wanted).encode() + b"\n")
        return Forked(int(await self._zygote.stdout.readline()))

    async def end_everything(self) -> None:
        """End everything of this node, and what its hypervisors were forked from."""
        await super().end_everything()
        if self._zygote is not None and self._zygote.stdin is not None:
            self._zygote.stdin.close()
            await self._zygote.wait()


@asynccontextmanager
async def forked_node(directory: Path, vmm: Path, *, defect: str = "", **settings: object) -> AsyncIterator[ForkedNode]:
    """Run a hypervisor of this node inside; the images are to be in `directory/state/images`."""
    it = ForkedNode(directory, vmm, defect=defect, **settings)
    try:
        await it.start()
        yield it
    finally:
        await it.end_everything()


def _serve() -> None:
    from cellmesh.hypervisor.__main__ import main

    # Children are reaped by the kernel; nobody here asks how they ended.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        wanted = json.loads(line)
        pid = os.fork()
        if not pid:
            _become(wanted, main)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


def _become(wanted: dict[str, Any], main: Any) -> None:
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(wanted["log"], os.O_WRONLY | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(wanted["environment"])
        defects.plant(wanted["defect"])
        main()
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    _serve()
