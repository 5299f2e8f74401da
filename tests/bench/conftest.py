"""Benchmarks: each number is measured beside its floor in the same run, and held to the ratio of the two."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.report import Result, result, table, write
from support.node import short_directory
from support.real_node import vmm

RESULTS = pytest.StashKey[list[Result]]()
REPORT = Path(__file__).parents[2] / "build" / "bench.json"
Record = Callable[..., None]
Interleave = Callable[..., tuple[list[float], list[float]]]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep pytest-benchmark's own table away: it knows neither floors nor what was emulated."""
    config.stash[RESULTS] = []
    config.option.benchmark_quiet = True


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table and write build/bench.json, with what was measured before something failed too."""
    results = config.stash[RESULTS]
    if not results:
        return
    write(REPORT, results)
    terminalreporter.section("benchmarks")
    for line in table(results):
        terminalreporter.write_line(line)
    for found in results:
        if found.note:
            terminalreporter.write_line(f"{found.name}: {found.note}")
    if any(found.emulated for found in results):
        terminalreporter.write_line("EMULATED: guests ran in software; compare ratios, never seconds.")


@pytest.fixture
def record(pytestconfig: pytest.Config) -> Iterator[Record]:
    """Take results into the table, as `bench.report.result` makes them; fail at the end if one is over its budget."""
    taken: list[Result] = []

    def take(name: str, samples: list[float], **rest: Any) -> None:
        taken.append(result(name, samples, **rest))
        pytestconfig.stash[RESULTS].append(taken[-1])

    yield take
    assert [broken for found in taken for broken in found.broken] == []


@pytest.fixture
def interleave(benchmark: Any) -> Interleave:
    """Measure a call by turns with its floor, so that a busy machine slows both; seconds of each.

    `floor` gives its own seconds, as it may be measured inside a guest. `reset` undoes a round, unmeasured.
    """

    def run(
        value: Callable[[], object],
        floor: Callable[[], float],
        *,
        rounds: int,
        warmup: int = 0,
        reset: Callable[[], object] = lambda: None,
    ) -> tuple[list[float], list[float]]:
        floors: list[float] = []
        benchmark.pedantic(
            value,
            setup=lambda: floors.append(floor()),
            teardown=lambda: reset(),
            rounds=rounds,
            warmup_rounds=warmup,
        )
        return list(benchmark.stats.stats.data), floors[warmup:]

    return run


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """Give an event loop that plain functions can run things on, as pytest-benchmark calls those."""
    with asyncio.Runner() as it:
        yield it


@pytest.fixture(scope="session")
def emulated() -> bool:
    """Tell whether guests run in software here, as the VMM itself says."""
    with short_directory() as directory:
        said = subprocess.run([vmm(directory), "--version"], check=True, capture_output=True, text=True)
    return "emulated" in said.stdout
