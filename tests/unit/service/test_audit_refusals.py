"""Calls that were refused: each is in the audit log, at a rate that nobody can drive up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import select

from cellmesh.mesh.identity import EDGE
from cellmesh.mesh.logs import LineBudget
from cellmesh.service.audit.refusals import Refusals
from support import tampering
from support.notes import Notes

pytestmark = pytest.mark.asyncio
SECONDS = 120


@asynccontextmanager
async def running(refusals: Refusals) -> AsyncIterator[None]:
    """Write refusals down inside."""
    task = asyncio.create_task(refusals.run())
    try:
        yield
    finally:
        task.cancel()


async def rows(notes: Notes, count: int) -> list[tampering.Row]:
    """Return the rows of the log once there are so many."""
    table = notes.schema.audit.rows
    query = select(table).order_by(table.c.sequence)
    with notes.changes.watched("audit") as changed:
        while True:
            changed.clear()
            async with notes.reading() as reading:
                found = await reading.step(lambda c: c.execute(query).mappings().all())
            if len(found) >= count:
                return [dict(row) for row in found]
            await changed.wait()


async def test_a_refused_call_says_who_wanted_what(notes: Notes) -> None:
    """The method and the caller are in it; a caller without an identity is nobody."""
    refusals = Refusals(notes)
    async with asyncio.timeout(SECONDS), running(refusals):
        refusals.note("/cellmesh.api.hypervisor.v1.VmService/CreateVm", EDGE)
        refusals.note("/cellmesh.api.hypervisor.v1.VmService/ListVms", None)
        first, second = await rows(notes, 2)
    assert (first["caller_role"], first["action"], first["decision"]) == ("edge", "call.refused", "DENIED")
    assert first["resource"] == "cellmesh.api.hypervisor.v1.VmService/CreateVm"
    assert (second["caller_role"], second["caller_name"]) == ("nobody", "nobody")


async def test_a_flood_of_them_is_counted(notes: Notes) -> None:
    """Beyond the burst nothing is written; the next entry says how many were left out."""
    now = 0.0
    refusals = Refusals(notes, budget=LineBudget(burst=3, interval=5.0, clock=lambda: now))
    async with asyncio.timeout(SECONDS), running(refusals):
        for _ in range(1000):
            refusals.note("/a.b/C", EDGE)
        now = 5.0
        refusals.note("/a.b/C", EDGE)
        found = await rows(notes, 4)
    assert [row["facts"] for row in found] == ['{"left_out":0}'] * 3 + ['{"left_out":997}']
