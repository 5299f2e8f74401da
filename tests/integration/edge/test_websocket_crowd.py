"""Ten thousand WebSockets at once: what they cost, that one too many is told so, and that others notice nothing.

What each costs is written to build/edge_websockets.txt.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from cellmesh.hypervisor.edge.endpoint import Endpoint
from cellmesh.hypervisor.edge.options import EdgeOptions
from cellmesh.hypervisor.limits import RouteLimits
from support import tables
from support.envoy import ALICE, READY_SECONDS, EdgeUnderTest, furnish, running_edge, until, with_limits
from support.http_client import answer, connected, get, head
from support.latency import SLOWER, times_slower

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO_SERVER = Path(__file__).parents[2] / "support" / "echo_server.py"
# Envoy has two descriptors for each, and some for itself; not everywhere a test may have more than it is given.
WEBSOCKETS = min(10_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 200)
LIMITS = RouteLimits()
AT_ONCE = 50
MOST_BYTES = 96 << 10
"""Of Envoy's memory for each."""
SAMPLES = 100
UPGRADE = (("Connection", "upgrade"), ("Upgrade", "websocket"))


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process, and what it starts, open as many files as they ever may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def echoing(path: Path) -> AsyncIterator[None]:
    """Run an app in a process of its own, which has descriptors of its own."""
    process = await asyncio.create_subprocess_exec(sys.executable, ECHO_SERVER, path, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        await process.wait()


def roomy(options: EdgeOptions) -> EdgeOptions:
    """Have room for all, and patience with an authorizer that is in the same process as they are."""
    return replace(with_limits(connections=2 * WEBSOCKETS)(options), authorizer_timeout=timedelta(seconds=30))


async def open_websocket(edge: EdgeUnderTest, user: str) -> socket.socket:
    """Return an open WebSocket of a user."""
    loop = asyncio.get_running_loop()
    line = socket.socket(socket.AF_UNIX)
    line.setblocking(False)
    await loop.sock_connect(line, str(edge.socket))
    await loop.sock_sendall(line, head("GET", "/ws", user=user, headers=UPGRADE))
    said = b""
    while b"\r\n\r\n" not in said:
        more = await loop.sock_recv(line, 4096)
        assert more, said
        said += more
    assert said.startswith(b"HTTP/1.1 101 "), said
    return line


async def echoes(line: socket.socket) -> bool:
    """Tell whether a WebSocket says back what it is told."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(line, b"x")
    return await loop.sock_recv(line, 2) == b"x"


def memory(edge: EdgeUnderTest) -> int:
    """Return the bytes of memory Envoy has."""
    assert edge.process is not None
    return int(Path(f"/proc/{edge.process.pid}/status").read_text().split("VmRSS:")[1].split()[0]) << 10


@pytest.mark.usefixtures("many_files")
async def test_ten_thousand_websockets_are_carried_side_by_side() -> None:
    """Prove that all echo, at a bounded cost each, that a route's next ones are refused, and that others are served."""
    users = [f"{number:08x}-0000-4000-8000-000000000003" for number in range(-(-WEBSOCKETS // LIMITS.connections))]
    async with running_edge(roomy) as edge, running_edge() as quiet:
        for each in (edge, quiet):
            await furnish(each)
        app = edge.options.directory / "echo.sock"
        async with echoing(app):
            version = edge.discovery.put({f"{user}/live": Endpoint(path=app, vm_id="vm") for user in users})
            for user in users:
                await edge.discovery.served(f"{user}/live", version, timeout=READY_SECONDS)
            lines: list[socket.socket] = []
            try:
                before = memory(edge)
                await each_of([users[number // LIMITS.connections] for number in range(WEBSOCKETS)], edge, lines)
                grown = memory(edge) - before
                refused = await refusals(edge, users[0])
                slower = await times_slower(edge, quiet, lambda count: count >= SAMPLES)
                alive = await asyncio.gather(*(echoes(line) for line in lines))
                talked = memory(edge) - before
            finally:
                for line in lines:
                    line.close()
            # All are gone, and so the user may open another.
            async with asyncio.timeout(READY_SECONDS):
                while (await get(edge.socket, "/ws", user=users[0], headers=UPGRADE)).status != 101:
                    pass
    costs = {"silent": grown // WEBSOCKETS, "each said something": talked // WEBSOCKETS}
    tables.write(
        "edge_websockets",
        ("WebSockets", "state", "KiB of Envoy each", "others wait, times as long"),
        [(WEBSOCKETS, state, f"{each / 1024:.1f}", f"{slower:.2f}") for state, each in costs.items()],
    )
    assert all(alive)
    assert refused == {(503, "CONTAINER_BUSY")}
    assert slower < SLOWER
    # Less than a KiB would be no measurement.
    assert all(1 << 10 < each < MOST_BYTES for each in costs.values()), costs


async def each_of(users: list[str], edge: EdgeUnderTest, lines: list[socket.socket]) -> None:
    """Open a WebSocket for each of these, some at once."""
    left = iter(users)

    async def open_some() -> None:
        for user in left:
            lines.append(await open_websocket(edge, user))  # noqa: PERF401  # closed by the caller, also after a failure

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(open_some())


async def refusals(edge: EdgeUnderTest, user: str) -> set[tuple[int, str]]:
    """Ask for more WebSockets than may wait for one, of a user who has all; return what the refused ones are told."""
    asked, told = LIMITS.pending_requests + 20, []

    async def ask() -> None:
        async with connected(edge.socket) as (reader, writer):
            writer.write(head("GET", "/ws", user=user, headers=UPGRADE))
            got = await answer(reader)
            told.append((got.status, got.json()["reason"]))

    asking = [asyncio.ensure_future(ask()) for _ in range(asked)]
    try:
        await until(lambda: len(told) >= asked - LIMITS.pending_requests)
    finally:
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return set(told)


async def test_without_a_routes_limit_nobody_is_refused() -> None:
    """Prove that the drill can fail: with more connections to a route than it asks for, no WebSocket is refused."""
    roomy_route = replace(LIMITS)
    # It refuses to be set so.
    object.__setattr__(roomy_route, "connections", 4 * LIMITS.connections)
    async with running_edge() as edge:
        edge.discovery._limits = roomy_route
        app = edge.options.directory / "echo.sock"
        async with echoing(app):
            await edge.discovery.served(
                f"{ALICE}/live",
                edge.discovery.put({f"{ALICE}/live": Endpoint(path=app, vm_id="vm")}),
                timeout=READY_SECONDS,
            )
            lines: list[socket.socket] = []
            try:
                await each_of([ALICE] * (2 * LIMITS.connections + 20), edge, lines)
            finally:
                for line in lines:
                    line.close()
