"""What every test shares: the images, an order for two workers, and the look at what a run leaves behind."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest
import structlog

from cellmesh.image import ContainerImage, GuestImage
from support import images, leftovers

BEFORE = pytest.StashKey[leftovers.Snapshot]()
ROOT = pytest.StashKey[Path]()
LEFT = pytest.StashKey[dict[str, set[str]]]()
# Files are handed to the workers in this order; the longest come first, so that no worker ends long after the other.
LONGEST_FIRST = (
    "test_histories",
    "test_guest_exec",
    "test_failpoints",
    "test_scale",
    "test_edge_",
    "test_guest_",
    "test_hypervisor_",
)
_SETTLE_SECONDS = 30.0
_GUEST_SECONDS = 900
# A run is judged by what was changed: not by which examples were drawn, nor by how long a busy machine took for one.
hypothesis.settings.register_profile(
    "suite",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")
# As the product writes them: by default structlog draws all locals of a traceback, and holds up what is under test.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


def pytest_configure(config: pytest.Config) -> None:
    """Set this run apart from others on the machine, and remember the machine as it was before the first test."""
    if not _is_worker(config):
        config.stash[ROOT] = leftovers.begin_run()
        config.stash[BEFORE] = leftovers.take()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and give real guests their time: the first may wait until the images are built."""
    items.sort(key=lambda item: _rank(item.path))
    for item in items:
        if item.get_closest_marker("guest") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_GUEST_SECONDS))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Collect no garbage while a failure is written down.

    A finalizer that logs a traceback meanwhile would enter Python 3.11's parser a second time, which ends the run with
    "AST constructor recursion depth mismatch" and hides the failure.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if it leaves a process, mount, socket or namespace behind; what just ends gets half a minute."""
    if _is_worker(session.config):
        return
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (left := leftovers.take().since(session.config.stash[BEFORE])) and time.monotonic() < deadline:
        time.sleep(0.1)
    session.config.stash[LEFT] = left
    shutil.rmtree(session.config.stash[ROOT], ignore_errors=True)
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left behind."""
    for kind, found in sorted(config.stash.get(LEFT, {}).items()):
        terminalreporter.section(f"{kind} left behind", sep="!", red=True)
        for line in sorted(found):
            terminalreporter.line(line)


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _rank(path: Path) -> tuple[int, str]:
    ranks = (rank for rank, start in enumerate(LONGEST_FIRST) if path.name.startswith(start))
    return next(ranks, len(LONGEST_FIRST)), str(path)


@pytest.fixture(scope="session")
def guest_image() -> GuestImage:
    """Give the guest image with the agent of this checkout; the first build of a machine takes half a minute."""
    return images.guest_image()


@pytest.fixture(scope="session")
def example_images() -> dict[str, ContainerImage]:
    """Give the example images of this checkout, by name: `live` and `dev`."""
    return images.example_images()
