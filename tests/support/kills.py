"""Drills that kill what is behind an edge under traffic; each returns its faults: what did not go on, or come back."""

from __future__ import annotations

import asyncio
import enum
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from cellmesh.api.hypervisor.v1 import vm_pb2
from cellmesh.hypervisor.vmm import sweep
from cellmesh.hypervisor.vmm.layout import short
from cellmesh.mesh.errors import MeshError
from support.edge import DEV, LIVE, Cell, Edge
from support.node import SECONDS
from support.traffic import Crowd, Exchange, Line, crowd, lines, visit

_CLIENTS_EACH = 4
_PAUSE = 0.02
_ENOUGH = 40
"""So many requests of all clients are many of each."""
_SHOWN = 3


class Finding(enum.Enum):
    """One way in which a kill reaches further than it may."""

    UNANSWERED = "a request that no container answered"
    LINE_LOST = "a WebSocket that was lost"
    RESTARTED = "a VM that did not go on as it was"
    PASSED = "a request that passed with nobody to say whose it is"
    MISTOLD = "an answer that tells something else than what is the matter"
    FORGOTTEN = "a route that does not lead where it was wished to"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What a drill found."""

    finding: Finding
    what: object


@dataclass(eq=False)
class Scene:
    """An edge, and two users with a cell each."""

    edge: Edge
    alice: Cell
    bob: Cell
    measured: list[tuple[str, str, str]] = field(default_factory=list)

    def note(self, killed: str, what: str, seconds: float) -> None:
        """Keep how long something took to come back."""
        self.measured.append((killed, what, f"{1000 * seconds:.0f} ms"))

    async def cells(self) -> list[vm_pb2.Vm]:
        """Return the VMs of both."""
        return [await self.edge.it.get(cell.vm_id) for cell in (self.alice, self.bob)]


@asynccontextmanager
async def scene_on(opened: AbstractAsyncContextManager[Edge]) -> AsyncIterator[Scene]:
    """Give the scene on an edge that is opened for it; each drill leaves it whole."""
    async with opened as edge:
        alice, bob = await asyncio.gather(edge.cell(containers=(LIVE, DEV)), edge.cell(containers=(LIVE, DEV)))
        yield Scene(edge=edge, alice=alice, bob=bob)


@dataclass(eq=False)
class Traffic:
    """What both users do meanwhile, requests again and again and a WebSocket each, and what is found."""

    visitors: Crowd
    alices: Line
    bobs: Line
    faults: list[Fault] = field(default_factory=list)

    def found(self, finding: Finding, some: Sequence[object]) -> None:
        """Take in what is wrong, if anything is; the first few are shown."""
        if some:
            self.faults.append(Fault(finding=finding, what=some[:_SHOWN]))

    def all_answered(self, *cells: Cell) -> None:
        """Find the requests of these cells' users that no container answered."""
        assert self.visitors.exchanges
        users = {cell.user_id for cell in cells}
        self.found(
            Finding.UNANSWERED, [each for each in self.visitors.exchanges if each.user_id in users and each.failed]
        )

    async def go_on(self, *some: Line) -> None:
        """Find these WebSockets lost, or wait until each has carried what is said now."""
        before = [line.echoes for line in some]
        async with asyncio.timeout(SECONDS):
            # What was on its way may have been carried before.
            while any(line.echoes < echoes + 2 for line, echoes in zip(some, before, strict=True)):
                if lost := [line.canary for line in some if line.lost.is_set()]:
                    self.found(Finding.LINE_LOST, lost)
                    return
                await asyncio.sleep(0.005)

    async def back(self, *cells: Cell) -> None:
        """Wait until requests of these cells' users that begin from now on are answered by containers."""
        begun = time.monotonic()
        async with asyncio.timeout(SECONDS):
            for cell in cells:
                while not any(  # noqa: ASYNC110  # of all that come
                    each.user_id == cell.user_id and each.begun >= begun and not each.failed
                    for each in reversed(self.visitors.exchanges)
                ):
                    await asyncio.sleep(0.005)

    def as_before(self, before: Sequence[vm_pb2.Vm], after: Sequence[vm_pb2.Vm]) -> None:
        """Find the VMs that were started anew, or do not run."""
        same = [(vm.epoch, vm.vmm_pid, vm_pb2.VM_STATE_RUNNING) for vm in before]
        self.found(
            Finding.RESTARTED,
            [vm for vm, was in zip(after, same, strict=True) if (vm.epoch, vm.vmm_pid, vm.state) != was],
        )


@asynccontextmanager
async def _traffic(scene: Scene) -> AsyncIterator[Traffic]:
    """Let both users be at work inside."""
    users = [scene.alice.user_id, scene.bob.user_id]
    async with lines(scene.edge, pause=0.02) as sockets, crowd(scene.edge, users * _CLIENTS_EACH, pause=_PAUSE) as it:
        alices, bobs = [await sockets.add(user) for user in users]
        await it.answered(_ENOUGH)
        yield Traffic(visitors=it, alices=alices, bobs=bobs)


async def without_hypervisor(scene: Scene) -> list[Fault]:
    """Kill the hypervisor and start another: all traffic has to go on, and routes to be switched then."""
    edge = scene.edge
    async with _traffic(scene) as it:
        await edge.it.hang_up()
        await edge.it.stop(signal.SIGKILL)
        await it.visitors.answered(_ENOUGH)
        await it.go_on(it.alices, it.bobs)
        begun = time.monotonic()
        await edge.it.start()
        scene.note("hypervisor", "it is ready", time.monotonic() - begun)
        await _switch_once_connected(scene)
        scene.note("hypervisor", "it switches a route", time.monotonic() - begun)
        await it.visitors.answered(_ENOUGH)
        await it.go_on(it.alices, it.bobs)
    it.all_answered(scene.alice, scene.bob)
    return it.faults


async def _switch_once_connected(scene: Scene) -> None:
    """Switch Alice's route there and back; Envoy comes back to a hypervisor in its own time."""
    async with asyncio.timeout(SECONDS):
        for container in (DEV, LIVE):
            while True:
                try:
                    await scene.edge.switch(scene.alice, container)
                    break
                except MeshError as error:
                    if error.reason != "EDGE_UNREACHABLE":
                        raise
                    await scene.edge.it.hang_up()  # its breaker would make us wait longer than the edge does
                await asyncio.sleep(0.01)


async def without_a_bridge(scene: Scene, *, shared_with: Sequence[Cell] = ()) -> list[Fault]:
    """Kill Alice's bridge: only her traffic may go with it, and has to come back with nothing restarted.

    Cells it is `shared_with` lose theirs at the same moment, as if they had the one.
    """
    before = await scene.cells()
    cells = (scene.alice, *shared_with)
    bridges = [_bridge(scene.edge, cell) for cell in cells]
    async with _traffic(scene) as it:
        for bridge in bridges:
            os.kill(bridge, signal.SIGKILL)
        killed = time.monotonic()
        await it.back(*cells)
        scene.note("bridge", "its VM answers", time.monotonic() - killed)
        async with asyncio.timeout(SECONDS):
            await it.alices.lost.wait()
        await it.visitors.answered(_ENOUGH)
        await it.go_on(it.bobs)
    it.all_answered(scene.bob)
    it.as_before(before, await scene.cells())
    return it.faults


def _bridge(edge: Edge, cell: Cell) -> int:
    (bridge,) = sweep.bridge_processes(edge.it.run_dir / "vm" / short(cell.vm_id))
    return bridge


async def without_activator(scene: Scene) -> list[Fault]:
    """Kill the activator: only requests that wait for a cell may miss it, are told so, and it has to wake it then."""
    edge = scene.edge
    carol = await edge.cell()
    await edge.it.stop_vm(carol.vm_id)
    async with _traffic(scene) as it, edge.visitor(carol.user_id) as visitor:
        await edge.activator.end()
        refused = await visit(visitor, carol.user_id)
        it.found(Finding.MISTOLD, [refused] if (refused.status, refused.canary) != (503, None) else [])
        await it.visitors.answered(_ENOUGH)
        begun = time.monotonic()
        await edge.activator.start()
        async with asyncio.timeout(SECONDS):
            while (seen := await visit(visitor, carol.user_id)).failed:
                it.found(Finding.MISTOLD, [seen] if seen.status != 503 else [])
                await asyncio.sleep(0.01)
        scene.note("activator", "a stopped cell was woken", time.monotonic() - begun)
        await it.go_on(it.alices, it.bobs)
    it.all_answered(scene.alice, scene.bob)
    await edge.delete(carol)
    return it.faults


async def without_authenticator(scene: Scene) -> list[Fault]:
    """Kill the authenticator: nobody may be let in meanwhile, and streams that were let in have to stay."""
    edge = scene.edge
    async with _traffic(scene) as it:
        await edge.authenticator.end()
        ended = time.monotonic()
        await it.visitors.answered(_ENOUGH)
        meanwhile = [each for each in it.visitors.exchanges if each.begun >= ended]
        await it.go_on(it.alices, it.bobs)
        begun = time.monotonic()
        await edge.authenticator.start()
        await it.back(scene.alice, scene.bob)
        scene.note("authenticator", "users are let in", time.monotonic() - begun)
        await it.go_on(it.alices, it.bobs)
    assert meanwhile
    it.found(Finding.PASSED, [each for each in meanwhile if not _kept_out(each)])
    return it.faults


def _kept_out(exchange: Exchange) -> bool:
    """Tell whether a request went no further than to the authenticator that is not there."""
    if (exchange.status, exchange.canary) != (503, None):
        return False
    return bool(json.loads(exchange.fault)["reason"] == "AUTHORIZER_UNREACHABLE")


async def without_envoy(scene: Scene) -> list[Fault]:
    """Kill Envoy: it has to come back to what was wished while it was away, and no cell may notice."""
    edge = scene.edge
    before = await scene.cells()
    async with _traffic(scene) as it:
        await edge.envoy.end()
        async with asyncio.timeout(SECONDS):
            for line in (it.alices, it.bobs):
                await line.lost.wait()
        # Once the first is told so, the hypervisor has noticed; what is wished next is wished of nobody.
        for cell in (scene.alice, scene.bob):
            reason = await _refusal(edge, cell, DEV)
            it.found(Finding.MISTOLD, [reason] if reason != "EDGE_UNREACHABLE" else [])
        begun = time.monotonic()
        await edge.envoy.start()
        await it.back(scene.alice, scene.bob)
        scene.note("envoy", "both cells answer", time.monotonic() - begun)
        for cell in (scene.alice, scene.bob):
            async with edge.visitor(cell.user_id) as visitor:
                seen = await visit(visitor, cell.user_id)
            it.found(Finding.FORGOTTEN, [seen] if seen.canary is None or seen.canary.container != DEV else [])
            await edge.switch(cell, LIVE)
    it.as_before(before, await scene.cells())
    return it.faults


async def _refusal(edge: Edge, cell: Cell, container: str) -> str:
    """Return the reason why a route was not switched, nothing if it was."""
    try:
        await edge.switch(cell, container)
    except MeshError as error:
        return error.reason
    return ""
