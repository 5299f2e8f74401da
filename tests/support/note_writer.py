"""Adds notes as fast as it can until it is killed, and prints each answer once it has it.

Run as `python -m support.note_writer LOCATION FIRST AUDIT`: a location that begins with `/` is a file of SQLite,
requests are numbered from FIRST, the signed heads of the audit log are in the directory AUDIT. With the defect
`NOTES_PLANT=answer-early` it prints answers before their commit.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import uuid
from pathlib import Path

from cellmesh.mesh import logs
from cellmesh.service.audit.seals import Seals
from support.intents import intent
from support.notes import Notes

_AT_ONCE = 8
_KEPT_ROWS = 50
_ANSWERS_EARLY = os.environ.get("NOTES_PLANT") == "answer-early"


async def main(location: str, first: int, audit: Path) -> None:
    """Add notes."""
    logs.configure(level="WARNING")
    numbers = itertools.count(first)
    place = Path(location) if location.startswith("/") else location
    async with Notes.opened(place) as notes, Seals.opened(notes, audit) as seals, asyncio.TaskGroup() as tasks:
        tasks.create_task(_sign(seals))
        for _ in range(_AT_ONCE):
            tasks.create_task(_add(notes, numbers))


async def _sign(seals: Seals) -> None:
    while True:
        await seals.seal()
        await seals.prune(keep=_KEPT_ROWS)
        await asyncio.sleep(0.005)


async def _add(notes: Notes, numbers: itertools.count[int]) -> None:
    for number in numbers:
        request = intent(request_id=f"{number:06}")
        async with notes.transaction() as tx:
            if (answer := await tx.answered(request)) is None:
                await tx.add_audited(request.request_id)
                answer = await tx.answer(request, str(uuid.uuid4()))
            if _ANSWERS_EARLY:
                print(request.request_id, answer.value, flush=True)  # this is its output
                await asyncio.sleep(0.01)
        print(request.request_id, answer.value, flush=True)  # this is its output


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
