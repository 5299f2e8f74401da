"""A fake node, and the command run against it as people run it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from support.fake_node import FakeNode, environment_of

Cellmesh = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a run directory with a short path."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def node(run_dir: Path) -> Iterator[FakeNode]:
    """Serve a fake node on the run directory's operator socket."""
    fake = FakeNode()
    fake.start(run_dir / "operator.sock")
    yield fake
    fake.stop()


@pytest.fixture
def environment(run_dir: Path, tmp_path: Path) -> dict[str, str]:
    """Give the environment in which the command finds its node."""
    return environment_of(run_dir, tmp_path)


@pytest.fixture
def cellmesh(environment: Mapping[str, str]) -> Cellmesh:
    """Give a function that runs the command to its end."""

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "cellmesh.cli", *arguments]
        return subprocess.run(
            argv, input=stdin, capture_output=True, text=True, env=environment, timeout=60, check=False
        )

    return run
