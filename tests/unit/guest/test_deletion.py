"""Deleting any tree, in a process of its own, with bounded memory and open files.

The trees lie in memory: 38,000 renames on a disk that others use take minutes. The guest's own disk has its turn in
`tests/integration/test_guest_disks.py`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmesh.guest.containers import deletion
from cellmesh.guest.containers.discarded import Discarded
from cellmesh.guest.reaper import Reaper

_MEMORY = Path("/dev/shm")
_DEPTH = 38_000
_LONG = "n" * 255
_NAMES = st.sampled_from(["a", "b", "c", ".", "..", _LONG]).filter(lambda name: name not in {".", ".."})
_TREES = st.recursive(
    st.sampled_from(["file", "link", "fifo", "hard"]), lambda inner: st.dictionaries(_NAMES, inner, max_size=4)
)


def _make(tree: object, path: Path, outside: Path) -> None:
    if isinstance(tree, dict):
        path.mkdir()
        for name, inner in tree.items():
            _make(inner, path / name, outside)
    elif tree == "link":
        path.symlink_to(outside.parent)
    elif tree == "fifo":
        os.mkfifo(path)
    elif tree == "hard":
        os.link(outside, path)
    else:
        path.write_text("x")


def _deep(top: Path, depth: int) -> None:
    """Make so many directories, each in the one before."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


@settings(max_examples=60, deadline=None)
@given(tree=st.dictionaries(_NAMES, _TREES, max_size=5))
def test_nothing_of_any_tree_is_left(tree: dict[str, object]) -> None:
    """Directories, links, FIFOs, hard links and long names go; what links lead to stays."""
    with tempfile.TemporaryDirectory(dir=_MEMORY) as directory:
        outside, top = Path(directory, "outside", "file"), Path(directory, "top")
        outside.parent.mkdir()
        outside.write_text("kept")
        _make(tree, top, outside)
        assert deletion.main(str(top)) == 0
        assert list(top.iterdir()) == []
        assert outside.read_text() == "kept"


@pytest.fixture
def place() -> Iterator[Path]:
    """Give an empty directory, whose content is gone afterwards however deep it is."""
    path = Path(tempfile.mkdtemp(dir=_MEMORY))
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


def _limited(script: str, top: Path) -> int:
    """Run a script with 128 MiB of memory and 32 descriptors; returns its exit code."""
    limits = (
        "import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 27, 1 << 27)); r.setrlimit(r.RLIMIT_NOFILE, (32, 32))"
    )
    return subprocess.run(
        [sys.executable, "-c", f"{limits}\n{script}", top], capture_output=True, check=False
    ).returncode


def test_a_tree_of_any_depth_is_deleted_in_bounded_memory(place: Path) -> None:
    """38,000 nested directories go; the control, rmtree under the same limits, fails."""
    _deep(place, _DEPTH)
    assert _limited("import shutil, sys; shutil.rmtree(sys.argv[1])", place) != 0
    assert (place / "d").exists()
    program = (
        f"import runpy, sys; sys.argv[0] = {deletion.__file__!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    assert _limited(program, place) == 0
    assert list(place.iterdir()) == []


def test_a_wide_tree_is_deleted(place: Path) -> None:
    """More directories side by side than are remembered at once are found again."""
    for outer in range(30):
        for inner in range(60):
            (place / f"{outer}/{inner}/x").mkdir(parents=True)
    assert deletion.main(str(place)) == 0
    assert list(place.iterdir()) == []


@pytest.mark.asyncio
async def test_what_is_discarded_is_deleted_beside_the_agent(tmp_path: Path) -> None:
    """Each call of `wake` is followed by a program that empties the directory, while the agent goes on."""
    reaper = Reaper()
    reaper.attach()
    discarded = Discarded(tmp_path, reaper, cgroup=None)
    running = asyncio.create_task(discarded.run())
    try:
        for _ in range(2):
            (tmp_path / "a/b").mkdir(parents=True)
            discarded.wake()
            async with asyncio.timeout(60):
                while any(tmp_path.iterdir()):  # noqa: ASYNC110  # a file system has no event
                    await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        reaper.detach()
