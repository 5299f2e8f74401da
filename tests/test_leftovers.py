"""The controls of the look at what a run leaves behind: what is planted is found, and fails a run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support import leftovers

PROGRAM = "print('up', flush=True); input()"
"""Says when it runs: until then, /proc may not know its command line yet."""
STRAY = f"""
import subprocess, sys
def test_leaves_a_process():
    argv = [sys.executable, "-c", {PROGRAM!r}, "cloud-hypervisor"]
    stray = subprocess.Popen(argv, stdin=int(sys.argv[-1]), stdout=subprocess.PIPE)
    assert stray.stdout.readline() == b"up\\n"
"""


@pytest.mark.parametrize("kind", ["processes", "sockets", "mounts", "namespaces"])
def test_a_planted_leftover_is_seen(kind: str, tmp_path: Path) -> None:
    """Prove that each kind is seen while it is there. Other tests run meanwhile, so others may be seen too."""
    before = leftovers.take()
    name = f"stray{os.getpid()}"
    if kind == "sockets":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "stray.sock"))
            assert str(tmp_path / "stray.sock") in leftovers.take().since(before)[kind]
    elif kind == "mounts":
        subprocess.run(["mount", "-t", "tmpfs", "stray", tmp_path], check=True)
        try:
            assert str(tmp_path) in leftovers.take().since(before)[kind]
        finally:
            subprocess.run(["umount", tmp_path], check=True)
    elif kind == "namespaces":
        Path("/run/netns").mkdir(exist_ok=True)
        (Path("/run/netns") / name).touch()
        try:
            assert name in leftovers.take().since(before)[kind]
        finally:
            (Path("/run/netns") / name).unlink()
    else:
        argv = [sys.executable, "-c", PROGRAM, "cloud-hypervisor"]
        stray = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            assert stray.stdout is not None
            assert stray.stdout.readline() == b"up\n"
            assert any(line.startswith(f"{stray.pid} ") for line in leftovers.take().since(before)[kind])
        finally:
            stray.communicate()


def test_a_run_that_leaves_a_process_fails(tmp_path: Path) -> None:
    """Prove that the run as a whole fails: its tests pass, its process does not go."""
    conftest = (
        Path(__file__).with_name("conftest.py").read_text().replace("_SETTLE_SECONDS = 30.0", "_SETTLE_SECONDS = 0")
    )
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    read_end, write_end = os.pipe()
    (tmp_path / "test_stray.py").write_text(STRAY.replace("int(sys.argv[-1])", str(read_end)))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", tmp_path],
            env=environment,
            pass_fds=(read_end,),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(write_end)
        os.close(read_end)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    assert "1 passed" in run.stdout
    assert "processes left behind" in run.stdout


@pytest.mark.parametrize(
    ("text", "environment", "foreign"),
    [
        ("/tmp/ct{other}/cm-x/run/operator.sock", "", True),
        ("cloud-hypervisor --api-socket /tmp/ct{other}/cm-x/api.sock", "", True),
        ("cloud-hypervisor", "A=1\0TEST_RUN_OF_CELLMESH={other}\0B=2", True),
        ("python -m cellmesh.hypervisor", "PATH=/bin\0CELLMESH_RUN_DIR=/tmp/ct{other}/cm-x/run\0", True),
        ("python -m cellmesh.hypervisor", "TMPDIR=/tmp/ct{other}\0B=2", True),
        ("/tmp/ct{ours}/cm-x/run/operator.sock", "", False),
        ("cloud-hypervisor", "TEST_RUN_OF_CELLMESH={ours}", False),
        ("python -m cellmesh.hypervisor", "CELLMESH_RUN_DIR=/tmp/ct{ours}/cm-x/run\0", False),
        ("cloud-hypervisor --api-socket /elsewhere/api.sock", "", False),
        ("/tmp/other/stray.sock", "NOT_TEST_RUN_OF_CELLMESH={other}", False),
        ("/tmp/ctags/stray.sock", "", False),
    ],
)
def test_only_what_certainly_belongs_to_another_run_is_left_out(text: str, environment: str, foreign: bool) -> None:
    """Two checkouts may run their tests side by side; what names neither run counts as left behind."""
    numbers = {"ours": os.environ[leftovers.RUN], "other": "1"}
    assert leftovers.is_of_another_run(text.format(**numbers), environment.format(**numbers).encode()) == foreign


def test_each_run_has_a_directory_of_its_own() -> None:
    """A second run is set apart from the first, also when one that was killed had its process id."""
    program = "from support import leftovers; print(leftovers.begin_run())"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    argv = [sys.executable, "-c", program]
    roots = {
        Path(subprocess.run(argv, env=environment, check=True, capture_output=True, text=True).stdout.strip())
        for _ in range(2)
    }
    try:
        assert len({*roots, Path(os.environ["TMPDIR"])}) == 3
        assert all(leftovers.is_of_another_run(f"{root}/api.sock") for root in roots)
        assert {root.stat().st_mode & 0o777 for root in roots} == {0o755}
    finally:
        for root in roots:
            root.rmdir()


@pytest.mark.parametrize("checkout", ["/var/tmp/cellmesh", "/var/tmp/cellmesh-1"])
def test_tests_and_checks_of_another_checkout_are_no_leftovers(checkout: str) -> None:
    """What works on a checkout names it, and is no process of a node; a node of that checkout is one."""
    work = ("-m pytest tests --ignore=tests/bench -n 2", "-m mypy", f"{checkout}/.venv/bin/ruff check mesh")
    assert not any(word in f"{checkout}/.venv/bin/python {argv}" for argv in work for word in leftovers.OURS)
    nodes = (f"{checkout}/.venv/bin/cellmesh up", f"{checkout}/.venv/bin/python -m cellmesh.hypervisor")
    assert all(any(word in argv for word in leftovers.OURS) for argv in nodes)
