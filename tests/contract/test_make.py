"""The Makefile's own promises."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.contracts import ROOT

SECONDS = 60.0
APT_GET = """#!/bin/sh
# As apt-get: it waits for no other one, and what it installed dpkg-query knows.
mkdir {place}/locked || exit 100
[ $1 = update ] && read go < {place}/go
[ $1 = update ] || touch {place}/installed
echo $1 >> {place}/done
rmdir {place}/locked
"""
DPKG_QUERY = """#!/bin/sh
[ -e {place}/installed ] && echo install ok installed
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Give a directory with an apt-get that waits for a line in `go`, and a place to lock."""
    for name, script in (("apt-get", APT_GET), ("dpkg-query", DPKG_QUERY)):
        (tmp_path / name).write_text(script.format(place=tmp_path))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "dpkg").mkdir()
    os.mkfifo(tmp_path / "go")
    return tmp_path


@contextmanager
def make(place: Path, makefile: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `make deps` with the programs of a place; it has ended afterwards."""
    # make puts the checkout's .venv/bin first in PATH; nothing there has these names.
    argv = ["make", "-f", makefile, "SUDO=", "PACKAGES=some", f"LOCK={place / 'dpkg'}", "deps"]
    environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}
    with subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


def until_first_is_in(place: Path) -> None:
    """Wait until an apt-get runs."""
    deadline = time.monotonic() + SECONDS
    while not (place / "locked").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def waits(directory: Path) -> bool:
    """Tell whether somebody waits for the lock of a directory; what has it too is in a line without an arrow."""
    inode = f":{directory.stat().st_ino} "
    return any("-> FLOCK" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


def test_two_checkouts_install_packages_one_after_the_other(place: Path) -> None:
    """The second waits for the first, and finds everything there."""
    with make(place, ROOT / "Makefile") as first:
        until_first_is_in(place)
        with make(place, ROOT / "Makefile") as second:
            deadline = time.monotonic() + SECONDS
            while not waits(place / "dpkg"):
                assert second.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            (place / "go").write_text("go\n")
            assert [first.wait(SECONDS), second.wait(SECONDS)] == [0, 0]
    assert (place / "done").read_text().split() == ["update", "install"]


def test_without_the_lock_the_second_checkout_fails(place: Path) -> None:
    """The control: apt-get does not wait."""
    makefile = place / "Makefile"
    makefile.write_text((ROOT / "Makefile").read_text().replace("flock 9; ", ""))
    with make(place, makefile) as first:
        until_first_is_in(place)
        with make(place, makefile) as second:
            assert second.wait(SECONDS) != 0
        (place / "go").write_text("go\n")
        assert first.wait(SECONDS) == 0
