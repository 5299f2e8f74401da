"""One process per state directory."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

import pytest

from cellmesh.service import state_lock
from cellmesh.service.state_lock import StateInUse, StateLock


@pytest.mark.asyncio
async def test_a_holder_that_dies_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a killed service for a moment, such as a child before its exec, keeps no other out."""
    monkeypatch.setattr(state_lock, "_PATIENCE", 30.0)
    copy = os.open(tmp_path / "notes.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(copy, fcntl.LOCK_EX)

    def hold() -> str:
        with StateLock(tmp_path, "notes"):
            return (tmp_path / "notes.lock").read_text()

    asyncio.get_running_loop().call_later(0.1, os.close, copy)
    assert await asyncio.to_thread(hold) == f"{os.getpid()}\n"


def test_one_state_directory_has_one_holder(tmp_path: Path) -> None:
    """A second holder is refused with the first one's pid, and may come once the first is gone."""
    with (
        StateLock(tmp_path, "notes"),
        pytest.raises(StateInUse, match=r"Another notes \(pid \d+\)"),
        StateLock(tmp_path, "notes"),
    ):
        pytest.fail("two hold it")
    with StateLock(tmp_path, "notes"), StateLock(tmp_path, "another"):
        assert (tmp_path / "notes.lock").exists()
