"""The `cellmesh` command with a node of its own on simulated VMs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator import Hub
from support.hollow_images import hollow_container, hollow_guest
from support.node import short_directory
from support.ports import held_port

SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A hub of simulated VMs, and directories with images for a node on it."""

    directory: Path
    hub: Hub
    image: str
    port: int
    """Where its edge listens."""

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment in which the command finds the node."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "CELLMESH_RUN_DIR": str(self.directory / "run"),
            "CELLMESH_STATE_DIR": str(self.directory / "state"),
            "CELLMESH_VMM": str(self.hub.binary),
            "CELLMESH_EDGE_LISTEN": f"127.0.0.1:{self.port}",
        }

    async def spawn(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start the command with pipes to it."""
        pipe = asyncio.subprocess.PIPE
        argv = [sys.executable, "-m", "cellmesh.cli", *arguments]
        return await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment)

    async def run(self, *arguments: str, stdin: bytes = b"", code: int = 0) -> bytes:
        """Run the command to its end, check its exit code, and return what it prints."""
        process = await self.spawn(*arguments)
        async with asyncio.timeout(SECONDS):
            stdout, stderr = await process.communicate(stdin)
        assert process.returncode == code, stderr.decode()
        return stdout


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """Set up a hub and images."""
    with short_directory() as directory:
        images = directory / "state" / "images"
        images.mkdir(parents=True)
        hollow_guest(images)
        image = hollow_container(images)
        with held_port() as port:
            async with Hub(directory / "hub") as hub:
                yield Stage(directory=directory, hub=hub, image=image, port=port)


async def runs(process_id: int) -> bool:
    """Tell whether a process runs; one whose first parent is gone may stay a zombie until init looks."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def ready(process: asyncio.subprocess.Process) -> Mapping[str, Any]:
    """Wait until `up --json` says that the node is ready, and return what it says."""
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.timeout(SECONDS):
        line = await process.stdout.readline()
        assert line, (await process.stderr.read()).decode()
    said: Mapping[str, Any] = json.loads(line)["ready"]
    return said


async def interrupt(process: asyncio.subprocess.Process) -> int:
    """Send Ctrl-C and return the exit code."""
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(SECONDS):
        await process.communicate()
    assert process.returncode is not None
    return process.returncode
