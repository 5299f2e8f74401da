"""The last test of every run: nothing is left behind. Its control plants something and sees it caught."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import leftovers


@pytest.mark.parametrize("kind", ["processes", "sockets", "mounts"])
def test_a_planted_leftover_is_caught(kind: str, tmp_path: Path) -> None:
    """Prove that each kind of leftover would fail the test below."""
    before = leftovers.take()
    if kind == "sockets":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "stray.sock"))
            assert leftovers.take().since(before) == {"sockets": {str(tmp_path / "stray.sock")}}
    elif kind == "mounts":
        subprocess.run(["mount", "-t", "tmpfs", "stray", tmp_path], check=True)
        try:
            assert leftovers.take().since(before) == {"mounts": {str(tmp_path)}}
        finally:
            subprocess.run(["umount", tmp_path], check=True)
    else:
        stray = subprocess.Popen([sys.executable, "-c", "input()", "cloud-hypervisor"], stdin=subprocess.PIPE)
        try:
            (found,) = leftovers.take().since(before)["processes"]
            assert found.startswith(f"{stray.pid} ")
        finally:
            stray.communicate()


def test_nothing_is_left_behind(machine_before: leftovers.Snapshot) -> None:
    """Compare with the machine before the first test; what is just ending gets a few seconds."""
    deadline = time.monotonic() + 10
    while (left := leftovers.take().since(machine_before)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
