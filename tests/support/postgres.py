"""A PostgreSQL server of Debian's, on a unix socket in a directory of its own."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import asyncpg

_SECONDS = 60.0


class PostgresServer:
    """A server that tests start, crash and stop; `directory` holds its socket and its data."""

    def __init__(self) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        if not programs:
            raise RuntimeError("there is no PostgreSQL server: apt-get install postgresql")
        self._programs = programs[-1]
        # It refuses to run as root.
        self._user = pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else None
        self.directory = Path(tempfile.mkdtemp(prefix="pg-"))
        if self._user is not None:
            os.chown(self.directory, self._user, -1)
        self._data = self.directory / "data"
        self._server: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._run("initdb", "-D", self._data, "-U", "cellmesh", "-A", "trust", "-E", "UTF8", "--no-sync")

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._programs / program), *map(str, arguments)]
        done = subprocess.run(command, user=self._user, cwd=self.directory, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout}{done.stderr}")

    def start(self) -> None:
        """Start the server and return once it answers."""
        self._server = subprocess.Popen(
            [
                self._programs / "postgres",
                "-D",
                self._data,
                "-k",
                self.directory,
                "-c",
                "listen_addresses=",
                "-c",
                "fsync=off",
            ],
            user=self._user,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ends = time.monotonic() + _SECONDS
        while True:
            try:
                self._run("pg_isready", "-h", self.directory, "-U", "cellmesh")
            except RuntimeError:
                if time.monotonic() > ends or self._server.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return

    def crash(self) -> None:
        """End the server without letting it clean up; what it told the kernel to write is there."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(_SECONDS)
            self._server = None

    def stop(self) -> None:
        """End the server and remove what it stored."""
        self.crash()
        shutil.rmtree(self.directory)

    async def create_database(self) -> str:
        """Make an empty database and return its URL."""
        self._databases += 1
        name = f"test_{self._databases}"
        connection = await asyncpg.connect(host=str(self.directory), user="cellmesh", database="postgres")
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
        return f"postgresql://cellmesh@/{name}?host={self.directory}"

    def create_database_now(self) -> str:
        """Make an empty database and return its URL, outside of an event loop."""
        return asyncio.run(self.create_database())
