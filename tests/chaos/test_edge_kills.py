"""Each process behind the edge is killed under traffic: what does not need it goes on, what does comes back.

How long each took to come back is written to build/edge_kills.txt; here it only has to.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from cellmesh.api.hypervisor.v1 import vm_pb2
from cellmesh.hypervisor.vmm import sweep
from cellmesh.hypervisor.vmm.layout import short
from cellmesh.mesh.errors import MeshError
from support import tables
from support.edge import DEV, LIVE, Cell, Edge, edge_on_simulator
from support.node import SECONDS
from support.traffic import Crowd, Exchange, Line, crowd, lines, visit

_CLIENTS_EACH = 4
_PAUSE = 0.02
_ENOUGH = 40
"""So many requests of all clients are many of each."""

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="module")]


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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene() -> AsyncIterator[Scene]:
    """Give one edge to all tests here; each leaves it whole."""
    async with edge_on_simulator() as edge:
        alice, bob = await asyncio.gather(edge.cell(containers=(LIVE, DEV)), edge.cell(containers=(LIVE, DEV)))
        it = Scene(edge=edge, alice=alice, bob=bob)
        yield it
        tables.write("edge_kills", ("killed", "until", "took"), it.measured)


@dataclass(eq=False)
class Traffic:
    """What both users do meanwhile: requests again and again, and a WebSocket each."""

    scene: Scene
    visitors: Crowd
    alices: Line
    bobs: Line

    def failed(self, cell: Cell) -> list[Exchange]:
        """Return the requests of a cell's user that no container answered."""
        return [each for each in self.visitors.exchanges if each.user_id == cell.user_id and each.failed]

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


@asynccontextmanager
async def traffic(scene: Scene) -> AsyncIterator[Traffic]:
    """Let both users be at work inside."""
    users = [scene.alice.user_id, scene.bob.user_id]
    async with lines(scene.edge, pause=0.02) as sockets, crowd(scene.edge, users * _CLIENTS_EACH, pause=_PAUSE) as it:
        alices, bobs = [await sockets.add(user) for user in users]
        await it.answered(_ENOUGH)
        yield Traffic(scene=scene, visitors=it, alices=alices, bobs=bobs)


async def _goes_on(*some: Line) -> None:
    """Prove that these WebSockets carry what is said now."""
    before = [line.echoes for line in some]
    async with asyncio.timeout(SECONDS):
        # What was on its way may have been carried before.
        while any(line.echoes < echoes + 2 for line, echoes in zip(some, before, strict=True)):
            assert not any(line.lost.is_set() for line in some)
            await asyncio.sleep(0.005)


async def test_without_hypervisor(scene: Scene) -> None:
    """Prove that all traffic goes on while the hypervisor is away and comes back, and that it switches routes then."""
    edge = scene.edge
    async with traffic(scene) as it:
        await edge.it.hang_up()
        await edge.it.stop(signal.SIGKILL)
        await it.visitors.answered(_ENOUGH)
        await _goes_on(it.alices, it.bobs)
        begun = time.monotonic()
        await edge.it.start()
        scene.note("hypervisor", "it is ready", time.monotonic() - begun)
        await _switch_once_connected(scene)
        scene.note("hypervisor", "it switches a route", time.monotonic() - begun)
        await it.visitors.answered(_ENOUGH)
        await _goes_on(it.alices, it.bobs)
    assert it.visitors.exchanges
    assert [each for each in it.visitors.exchanges if each.failed][:3] == []


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


async def test_without_a_bridge(scene: Scene) -> None:
    """Prove that a bridge takes only its own VM's traffic with it, and that this comes back with nothing restarted."""
    edge = scene.edge
    before = await edge.it.get(scene.alice.vm_id)
    (bridge,) = sweep.bridge_processes(edge.it.run_dir / "vm" / short(scene.alice.vm_id))
    async with traffic(scene) as it:
        os.kill(bridge, signal.SIGKILL)
        killed = time.monotonic()
        await it.back(scene.alice)
        scene.note("bridge", "its VM answers", time.monotonic() - killed)
        async with asyncio.timeout(SECONDS):
            await it.alices.lost.wait()
        await it.visitors.answered(_ENOUGH)
        await _goes_on(it.bobs)
    assert it.failed(scene.bob)[:3] == []
    after = await edge.it.get(scene.alice.vm_id)
    assert (after.epoch, after.vmm_pid, after.state) == (before.epoch, before.vmm_pid, vm_pb2.VM_STATE_RUNNING)


async def test_without_activator(scene: Scene) -> None:
    """Prove that only requests which wait for a cell miss it, and are told so, and that it wakes the cell then."""
    edge = scene.edge
    carol = await edge.cell()
    await edge.it.stop_vm(carol.vm_id)
    async with traffic(scene) as it, edge.visitor(carol.user_id) as visitor:
        await edge.activator.end()
        refused = await visit(visitor, carol.user_id)
        assert (refused.status, refused.canary) == (503, None), refused
        await it.visitors.answered(_ENOUGH)
        begun = time.monotonic()
        await edge.activator.start()
        async with asyncio.timeout(SECONDS):
            while (seen := await visit(visitor, carol.user_id)).failed:
                assert seen.status == 503, seen
                await asyncio.sleep(0.01)
        scene.note("activator", "a stopped cell was woken", time.monotonic() - begun)
        await _goes_on(it.alices, it.bobs)
    assert [each for each in it.visitors.exchanges if each.failed][:3] == []
    await edge.delete(carol)


async def test_without_authenticator(scene: Scene) -> None:
    """Prove that nobody is let in while nobody says who they are, and that streams which were let in stay."""
    edge = scene.edge
    async with traffic(scene) as it:
        await edge.authenticator.end()
        ended = time.monotonic()
        await it.visitors.answered(_ENOUGH)
        meanwhile = [each for each in it.visitors.exchanges if each.begun >= ended]
        await _goes_on(it.alices, it.bobs)
        begun = time.monotonic()
        await edge.authenticator.start()
        await it.back(scene.alice, scene.bob)
        scene.note("authenticator", "users are let in", time.monotonic() - begun)
        await _goes_on(it.alices, it.bobs)
    assert {(each.status, each.canary) for each in meanwhile} == {(503, None)}, meanwhile[:3]


async def test_without_envoy(scene: Scene) -> None:
    """Prove that Envoy comes back to what was wished while it was away, and that no cell notices."""
    edge = scene.edge
    before = [await edge.it.get(cell.vm_id) for cell in (scene.alice, scene.bob)]
    async with traffic(scene) as it:
        await edge.envoy.end()
        async with asyncio.timeout(SECONDS):
            for line in (it.alices, it.bobs):
                await line.lost.wait()
        with pytest.raises(MeshError) as caught:
            await edge.switch(scene.alice, DEV)
        assert caught.value.reason == "EDGE_UNREACHABLE"
        begun = time.monotonic()
        await edge.envoy.start()
        await it.back(scene.alice, scene.bob)
        scene.note("envoy", "both cells answer", time.monotonic() - begun)
        async with edge.visitor(scene.alice.user_id) as visitor:
            seen = await visit(visitor, scene.alice.user_id)
        assert seen.canary is not None
        assert seen.canary.container == DEV
        await edge.switch(scene.alice, LIVE)
    after = [await edge.it.get(cell.vm_id) for cell in (scene.alice, scene.bob)]
    assert [(vm.epoch, vm.vmm_pid) for vm in after] == [(vm.epoch, vm.vmm_pid) for vm in before]
