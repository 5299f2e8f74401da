"""The place of a VM is taken by another user's at once, under load: nobody is ever answered by another's cell.

Two things keep users apart, and each has to do without the other: the edge is told to lead elsewhere before a VM goes,
and a path that it may still know leads to nobody ever after. So for a part of the time the edge is told nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cellmesh.hypervisor.vmm.ingress import Ingress
from cellmesh.hypervisor.vmm.layout import short
from support.edge import Cell, Edge, edge_on_simulator
from support.held import HeldLine
from support.node import SECONDS, node_here
from support.traffic import Crowd, Exchange, Tenancy, crowd

_PLACES = 4
_TURNS = 50
"""How often each place is taken."""
_HELD_EVERY = 10
"""Of so many turns of a place, in one the edge is told nothing until the next one is in."""
_CLIENTS_EACH = 2
_PAUSE = 0.03

pytestmark = pytest.mark.chaos


@dataclass(eq=False)
class Places:
    """Places that users take from each other, while all of them ask for their own cells."""

    edge: Edge
    line: HeldLine
    visitors: Crowd
    held_every: int
    tenancy: Tenancy = field(default_factory=Tenancy)
    uids: set[int] = field(default_factory=set)

    async def take(self, pair: tuple[str, str], turns: int) -> None:
        """Let two users take one place by turns."""
        cell = await self.edge.cell(pair[0])
        self._came(cell)
        for turn in range(1, turns + 1):
            if turn % self.held_every:
                await self._left(cell)
                cell = await self.edge.cell_inside(pair[turn % 2])
                self._came(cell)
            else:
                async with self.line.held():
                    await self._left(cell)
                    cell = await self.edge.cell_inside(pair[turn % 2])
                    self._came(cell)
                    await self.visitors.answered(len(pair) * _CLIENTS_EACH * _PLACES)
            await self.visitors.answered_by(cell.vm_id)

    def strangers(self) -> list[Exchange]:
        """Return the answers that nobody should have had."""
        return self.tenancy.strangers(self.visitors.exchanges)

    def _came(self, cell: Cell) -> None:
        self.tenancy.came(cell.vm_id, cell.user_id)
        self.uids.add((self.edge.it.run_dir / "vm" / short(cell.vm_id)).stat().st_uid)

    async def _left(self, cell: Cell) -> None:
        await self.edge.delete(cell)
        self.tenancy.went(cell.vm_id)


@pytest.mark.asyncio
async def test_nobody_is_answered_by_who_took_a_place() -> None:
    """Prove that of 200 places taken at once no request ever sees the cell of another user, or one that is gone."""
    line = HeldLine()
    async with (
        edge_on_simulator(line=line.serving, max_vms=_PLACES) as edge,
        _taken(edge, line, turns=_TURNS, held_every=_HELD_EVERY) as (places, taking),
    ):
        await asyncio.gather(*taking)
    assert len(places.tenancy.owners) == _PLACES * (_TURNS + 1)
    assert places.visitors.answering == places.tenancy.owners.keys()
    assert len(places.uids) <= _PLACES, "a place was not taken at once"
    assert places.strangers()[:3] == []


@pytest.mark.asyncio
async def test_sockets_named_by_place_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove that the same judge finds sockets whose names leave out VM, epoch and generation."""
    line, by_place = HeldLine(), ByPlace()
    async with edge_on_simulator(node_here, line=line.serving, max_vms=_PLACES) as edge:
        monkeypatch.setattr(Ingress, "path", lambda ingress, vm_id, name: by_place.path(ingress, vm_id, name))
        async with _taken(edge, line, turns=_TURNS, held_every=1) as (places, _), asyncio.timeout(SECONDS):
            while not places.strangers():  # noqa: ASYNC110  # of all answers
                await asyncio.sleep(0.1)


@asynccontextmanager
async def _taken(
    edge: Edge, line: HeldLine, *, turns: int, held_every: int
) -> AsyncIterator[tuple[Places, list[asyncio.Task[None]]]]:
    """Let all places be taken inside; yield what is seen, and what takes them."""
    pairs = [(str(uuid.uuid4()), str(uuid.uuid4())) for _ in range(_PLACES)]
    users = [user for pair in pairs for user in pair] * _CLIENTS_EACH
    async with crowd(edge, users, pause=_PAUSE) as visitors, asyncio.TaskGroup() as tasks:
        places = Places(edge=edge, line=line, visitors=visitors, held_every=held_every)
        taking = [tasks.create_task(places.take(pair, turns)) for pair in pairs]
        try:
            yield places, taking
        finally:
            for task in taking:
                task.cancel()


class ByPlace:
    """The planted defect: a socket's name says which of so many places its VM has, and which container it is."""

    def __init__(self) -> None:
        self._taken: dict[int, str] = {}

    def path(self, ingress: Ingress, vm_id: str, name: str) -> Path:
        """Return where a listener's socket lies."""
        directory = ingress.layout.ingress_root / f"place-{self._place(ingress, vm_id)}"
        if not directory.exists():
            directory.mkdir(mode=0o710)
            if (group := ingress.layout.edge_gid) is not None:
                os.chown(directory, -1, group)
        return directory / name.partition(".")[0]

    def _place(self, ingress: Ingress, vm_id: str) -> int:
        for place in itertools.count():
            if self._taken.get(place) == vm_id:
                return place
            if place not in self._taken or not ingress.layout.run(self._taken[place]).exists():
                self._taken[place] = vm_id
                return place
        raise AssertionError
