"""The demo's node: the `cellmesh` command with directories of its own, and what it leaves when it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

READY_SECONDS = 600.0  # `up` itself gives up earlier if nothing moves any more.
STOP_SECONDS = 120.0
LAST_LINES = 25


class DemoError(Exception):
    """A step did not do what it should."""


class Cellmesh:
    """The `cellmesh` command with run and state directories of the demo's own."""

    def __init__(self, home: Path, vmm: str, *, edge_listen: str = "") -> None:
        self.home = home
        self.run_dir = home / "run"
        self.state_dir = home / "state"
        self.edge_listen = edge_listen
        self.ready: dict[str, Any] = {}
        """What the node said of itself when it was ready."""
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CELLMESH_")},
            "CELLMESH_RUN_DIR": str(self.run_dir),
            "CELLMESH_STATE_DIR": str(self.state_dir),
            "CELLMESH_VMM": vmm,
            **({"CELLMESH_EDGE_LISTEN": edge_listen} if edge_listen else {}),
        }
        self.state_dir.mkdir(mode=0o755, parents=True)

    def argv(self, *arguments: str) -> list[str]:
        """Return the command line."""
        return [sys.executable, "-m", "cellmesh.cli", *arguments]

    def try_run(self, *arguments: str, timeout: float = 900.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever its exit code; `timeout` in seconds."""
        return subprocess.run(
            self.argv(*arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=timeout,
            check=False,
        )

    def run(self, *arguments: str) -> str:
        """Run a command and return what it prints; raises DemoError unless it ends well."""
        result = self.try_run(*arguments)
        if result.returncode != 0:
            raise DemoError(f"`cellmesh {arguments[0]} {arguments[1]}`: {said_in(result.stderr)}")
        return result.stdout

    def objects(self, *arguments: str) -> list[dict[str, object]]:
        """Run a command with --json and return the objects it prints."""
        return [json.loads(line) for line in self.run(*arguments, "--json").splitlines()]

    @contextmanager
    def node(self) -> Iterator[None]:
        """Run a node, with its edge if it was told where; afterwards no process of it or of its VMs is left."""
        process = subprocess.Popen(
            self.argv("up", "--stop-vms", "--json", *([] if self.edge_listen else ["--no-edge"])),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self._await_ready(process)
            yield
            self._stop(process)
            if process.returncode != 0:
                raise DemoError(f"The node ended with exit code {process.returncode}.")
        except BaseException:
            # Now: stopping the VMs clears their consoles away.
            last_words(self.home)
            raise
        finally:
            self._stop(process)
            kill_all_of(self.run_dir)

    def _await_ready(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        ready, _, _ = select.select([process.stdout], [], [], READY_SECONDS)
        if not ready:
            raise DemoError(f"The node is not ready after {READY_SECONDS:g} s.")
        # It says one line when it is ready, and then one for each change, which nobody needs to read.
        line = process.stdout.readline()
        if not line:
            process.wait(STOP_SECONDS)
            raise DemoError(f"The node did not start: {said_in(process.stderr.read())}")
        self.ready = json.loads(line)["ready"]
        threading.Thread(target=_drain, args=(process.stdout,), daemon=True).start()

    def _stop(self, process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _drain(stream: TextIO) -> None:
    for _ in stream:
        pass


def said_in(stderr: str) -> str:
    """Return what a failed command said, without the JSON around it."""
    try:
        error = json.loads(stderr.strip().splitlines()[-1])["error"]
    except (IndexError, ValueError, KeyError):
        return stderr.strip()
    return f"{error['message']} {error['fix']}"


def kill_all_of(run_dir: Path) -> None:
    """Kill what still runs with our run directory on its command line: it is ours alone."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if os.fsencode(run_dir) in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue


def last_words(home: Path) -> None:
    """Print the ends of the guests' consoles and of the node's logs."""
    for path in (*home.glob("*/vm/*/console.log"), *home.glob("run/*.log"), *home.glob("run/edge/*.log")):
        lines = path.read_text(errors="backslashreplace").splitlines()[-LAST_LINES:]
        print(f"--- the end of {path}")
        for line in lines:
            # What a guest writes may hold anything; the terminal is to obey none of it.
            print("  " + line.encode("ascii", "backslashreplace").decode().encode("unicode_escape").decode())
