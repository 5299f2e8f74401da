"""A service that is killed at any moment loses no change it answered for, and answers a repeated request as before."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellmesh.service.audit.seals import Seals
from cellmesh.service.audit.verify import verify
from support import contracts
from support.notes import Notes
from support.postgres import PostgresServer

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio]
ROUNDS = 12
_REPEATS = 16
"""How many of the newest requests are sent again after a kill; more than are under way at once."""


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """Give a server that runs."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


class Writer:
    """A process that adds notes, killed again and again."""

    def __init__(self, location: str, audit: Path) -> None:
        self.location = location
        self.audit = audit
        self.answers: dict[str, str] = {}
        self.repeated = 0
        self._random = random.Random(7)  # noqa: S311  # it decides about moments only

    def run(self, crash: PostgresServer | None = None) -> None:
        """Let it go on from its newest requests, kill it after some answers, and hold what it said against before."""
        first = max(len(self.answers) - _REPEATS, 0)
        environment = {**os.environ, "PYTHONPATH": str(contracts.ROOT / "tests")}
        wanted = self._random.randrange(20, 120)
        with subprocess.Popen(
            [sys.executable, "-m", "support.note_writer", self.location, str(first), str(self.audit)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if crash else None,
            text=True,
        ) as writer:
            assert writer.stdout is not None
            for line in writer.stdout:
                self._take(line)
                wanted -= 1
                if not wanted:
                    time.sleep(self._random.random() / 100)
                    if crash is not None:
                        crash.crash()
                    writer.kill()
        if crash is not None:
            crash.start()

    def _take(self, line: str) -> None:
        if not line.endswith("\n"):
            return  # cut off by the kill: nobody got this answer
        request, answer = line.split()
        if request in self.answers:
            self.repeated += 1
        assert self.answers.setdefault(request, answer) == answer, f"request {request} was answered in two ways"


async def _check(location: Path | str, writer: Writer) -> None:
    async with Notes.opened(location) as notes, Seals.opened(notes, writer.audit) as seals:
        verdict = await verify(seals)
        async with notes.reading() as reading:
            names = list(await reading.names())
            rows = await reading.rows(after=0, limit=1_000_000)
    assert len(writer.answers) > 20 * ROUNDS - ROUNDS * _REPEATS
    assert writer.repeated
    assert not set(writer.answers) - set(names), "a change that was answered for is gone"
    assert sorted(row["name"] for row in rows) == names, "a change has no entry, or an entry no change"
    assert verdict.fault == "", "the chain of the audit log is broken"
    assert verdict.first + verdict.rows - 1 == len(names), "a change has no audit row, or a row no change"


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_a_killed_writer_loses_nothing_it_answered(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """SIGKILL at any moment, on each database."""
    if database == "sqlite":
        location: Path | str = tmp_path / "notes.db"
    else:
        location = await request.getfixturevalue("postgres").create_database()
    writer = Writer(str(location), tmp_path / "audit")
    for _ in range(ROUNDS):
        writer.run()
    await _check(location, writer)


async def test_a_database_server_that_crashes_loses_nothing_it_answered(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    """The server is ended in the midst of commits, and starts again from its log."""
    location = await postgres.create_database()
    writer = Writer(location, tmp_path / "audit")
    for _ in range(ROUNDS // 2):
        writer.run(crash=postgres)
    await _check(location, writer)


async def test_an_answer_before_its_commit_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a writer that answers before it commits is found out."""
    monkeypatch.setenv("NOTES_PLANT", "answer-early")
    location = tmp_path / "notes.db"
    writer = Writer(str(location), tmp_path / "audit")
    with pytest.raises(AssertionError, match=r"two ways|is gone"):
        await _run_and_check(location, writer)


async def _run_and_check(location: Path, writer: Writer) -> None:
    for _ in range(ROUNDS):
        writer.run()
        async with Notes.opened(location) as notes, notes.reading() as reading:
            assert not set(writer.answers) - set(await reading.names()), "a change that was answered for is gone"
