"""Processes that make an authority in the same directory at once: there is one, and all have it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

PROCESSES = 3
PATIENCE = 60.0
# With the locks taken away each makes an authority before any of them has read one, and they go on one by one.
PROGRAM = """
import contextlib, datetime, sys, time
from pathlib import Path
from cellmesh.hypervisor.edge import certificate
from cellmesh.mesh import authority, pki

kind, state, turns, me, others, has_locks = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6] == "locked"

def wait_for(names, seconds):
    ends = time.monotonic() + seconds
    while not all((Path(turns) / name).exists() for name in names) and time.monotonic() < ends:
        time.sleep(0.01)

def slow(make):
    def making(now):
        (Path(turns) / f"made.{me}").touch()
        wait_for([f"made.{each}" for each in range(others)], 0.5 if has_locks else 60)
        wait_for([f"done.{each}" for each in range(me)], 0.1 if has_locks else 60)
        return make(now)
    return making

authority._make, certificate._make_authority = slow(authority._make), slow(certificate._make_authority)
if not has_locks:
    authority.locked = certificate.locked = contextlib.nullcontext
late = datetime.timedelta(days=200) if kind == "replaced" else datetime.timedelta()
print("ready", flush=True)
sys.stdin.readline()
if kind == "edge":
    said = certificate.EdgeAuthority(Path(state)).certificate_pem
else:
    made = authority.LocalAuthority(Path(state), trust_domain="cells.test", clock=lambda: pki.utc_now() + late)
    said = made.bundle()
(Path(turns) / f"done.{me}").touch()
print(said.hex())
"""


def at_once(kind: str, directory: Path, locks: str) -> Sequence[str]:
    """Run the processes and return which authorities each has."""
    turns = directory / f"turns-{kind}"
    turns.mkdir()
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, kind, directory / "state", turns, str(me), str(PROCESSES), locks],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in range(PROCESSES)
    ]
    try:
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("go\n")
            program.stdin.flush()
        ended = [program.communicate(timeout=PATIENCE) for program in programs]
    finally:
        for program in programs:
            program.kill()
            program.wait()
    assert [program.returncode for program in programs] == [0] * PROCESSES, [errors for _, errors in ended]
    return [said for said, _ in ended]


@pytest.mark.parametrize("kind", ["edge", "local"])
def test_all_have_the_one_authority(kind: str, tmp_path: Path) -> None:
    """Prove of a first start that what one process signs all others accept, and that a later start has the same."""
    first = at_once(kind, tmp_path, "locked")
    assert len(set(first)) == 1
    again = tmp_path / "again"
    again.mkdir()
    (tmp_path / "state").rename(again / "state")
    assert set(at_once(kind, again, "locked")) == set(first)


def test_all_have_the_one_that_takes_over(tmp_path: Path) -> None:
    """Prove of the day on which the next authority takes over that it does once, and that no start fails."""
    (before,) = set(at_once("local", tmp_path, "locked"))
    (after,) = set(at_once("replaced", tmp_path, "locked"))
    assert after != before


@pytest.mark.parametrize("kind", ["edge", "local"])
def test_without_locks_each_has_its_own(kind: str, tmp_path: Path) -> None:
    """Prove that the tests before can fail: processes that look and then make end with different authorities."""
    assert len(set(at_once(kind, tmp_path, "open"))) > 1
