"""An activator of a test's own: the real process, in a run directory where a fake hypervisor may serve the edge."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import psutil

from cellmesh.mesh.identity import EDGE
from cellmesh.mesh.server import MeshServer
from support.route_service import Routes

EDGE_UID = 599_999
_READY_SECONDS = 60.0


class Activator:
    """The process; `start` and `kill` it as often as a test wants."""

    def __init__(self, run_dir: Path, environment: Mapping[str, str]) -> None:
        self.socket = run_dir / "edge" / "activator.sock"
        self.log = run_dir / "activator.log"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CELLMESH_")},
            "CELLMESH_RUN_DIR": str(run_dir),
            "CELLMESH_STATE_DIR": str(run_dir / "state"),
            "CELLMESH_VMM": "/bin/true",
            **environment,
        }
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        """Return the process as it was started last."""
        assert self._process is not None
        return self._process

    @property
    def rss(self) -> int:
        """Return the bytes of memory it has."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    async def spawn(self) -> None:
        """Start it, and do not wait for it."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "cellmesh.hypervisor.activator", env=self.environment, stdout=log, stderr=log
            )

    async def start(self) -> None:
        """Start it and wait until it is well."""
        await self.spawn()
        await self.well()

    async def well(self) -> None:
        """Wait until it says that it is well."""
        ends = time.monotonic() + _READY_SECONDS
        while True:
            try:
                async with client(self.socket) as session, session.get("http://edge/healthz") as response:
                    assert await response.json() == {"status": "ok"}
                    return
            except aiohttp.ClientConnectionError:
                assert self._process is None or self._process.returncode is None, self.log.read_text()
                assert time.monotonic() < ends, "it does not answer"
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """End it by force."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


def client(path: Path) -> aiohttp.ClientSession:
    """Return a client whose every connection is to a unix socket."""
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path), limit=0))


@contextmanager
def run_directory() -> Iterator[Path]:
    """Give a run directory with the edge's in it, as the hypervisor makes it; its path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="cm-") as made:
        run_dir = Path(made)
        edge = run_dir / "edge"
        edge.mkdir(mode=0o750)
        if os.geteuid() == 0:
            run_dir.chmod(0o755)
            os.chown(edge, -1, EDGE_UID)
            edge.chmod(0o1770)
        yield run_dir


@asynccontextmanager
async def activator(run_dir: Path, **environment: str) -> AsyncIterator[Activator]:
    """Run the activator inside."""
    made = Activator(run_dir, environment)
    try:
        await made.start()
        yield made
    finally:
        await made.kill()


@asynccontextmanager
async def hypervisor(run_dir: Path, routes: Routes) -> AsyncIterator[None]:
    """Serve the edge as the hypervisor does, with what a test says about routes."""
    server = MeshServer([])
    gid = EDGE_UID if os.geteuid() == 0 else None
    server.add_unix_socket(run_dir / "edge" / "edge.sock", services=[routes.register], caller=EDGE, gid=gid)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0.0)
