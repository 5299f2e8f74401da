"""Tampering with an audit log is found, whichever way it is done, and only tampering is."""

from __future__ import annotations

import copy
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from cellmesh.service.audit import verify as checking
from cellmesh.service.audit.seals import Seals
from cellmesh.service.audit.verify import verify
from cellmesh.service.store import audit
from support import tampering
from support.notes import Notes

pytestmark = pytest.mark.asyncio
TIMES = 128
_ROWS = 40


@dataclass
class Scene:
    """A log of some rows and heads, of which the oldest rows were pruned."""

    notes: Notes
    seals: Seals
    file: Path

    async def fill(self) -> None:
        """Write rows, and sign them from time to time; all are signed at the end."""
        for number in range(_ROWS):
            async with self.notes.transaction() as tx:
                await tx.add_audited(f"{number}")
            if number % 7 == 6:
                await self.seals.seal()
        await self.seals.seal()
        await self.seals.prune(keep=_ROWS - 5)

    async def tampered(self) -> list[tuple[str, str]]:
        """Tamper with the log in many ways, one after another; return those that were not found, and why."""
        whole = await tampering.load(self.notes, self.file)
        unfound = []
        names = list(tampering.WAYS)
        for seed in range(TIMES):
            name, chosen = names[seed % len(names)], random.Random(seed)  # noqa: S311  # it decides about places only
            log = copy.deepcopy(whole)
            tampering.WAYS[name](log, chosen)
            await tampering.put(self.notes, self.file, log)
            verdict = await verify(self.seals)
            if not verdict.fault:
                unfound.append((f"{name} {seed}", "nothing found"))
            elif log.wrong_row is not None and verdict.wrong_row != log.wrong_row:
                unfound.append((f"{name} {seed}", f"row {log.wrong_row} is wrong: {verdict}"))
            await tampering.put(self.notes, self.file, whole)
            assert (await verify(self.seals)).fault == ""
        return unfound


@pytest_asyncio.fixture
async def scene(notes: Notes, tmp_path: Path) -> AsyncIterator[Scene]:
    """Give a log."""
    async with Seals.opened(notes, tmp_path / "audit") as seals:
        yield Scene(notes, seals, tmp_path / "audit" / "heads")


async def test_every_tampering_is_found(scene: Scene) -> None:
    """Of all ways, at random places: each is found, the first row that is wrong is named, and without them none is."""
    await scene.fill()
    verdict = await verify(scene.seals)
    assert (verdict.fault, verdict.first, verdict.rows) == ("", 6, _ROWS - 5)
    assert await scene.tampered() == []


async def test_a_check_that_does_not_look_at_the_hash_before_is_caught(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: with rows that are hashed each for itself, rows that were written anew go unnoticed."""
    real = audit.row_hash
    for module in (audit, checking):
        monkeypatch.setattr(module, "row_hash", lambda _, row: real(audit.GENESIS, row))
    await scene.fill()
    unfound = {name.split()[0] for name, _ in await scene.tampered()}
    assert "edit_and_hash" in unfound


async def test_heads_that_are_not_looked_at_are_caught(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without heads a tail that is cut off and a chain that is hashed anew go unnoticed."""
    await scene.fill()
    monkeypatch.setattr(checking, "_matched", lambda *_: None)
    unfound = {name.split()[0] for name, _ in await scene.tampered()}
    assert {"cut", "edit_and_hash_all"} <= unfound
