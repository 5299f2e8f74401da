"""The way from the host's ingress sockets into the containers of a real guest."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from cellmesh.api.common.v1 import container_pb2 as common_container_pb2
from cellmesh.api.hypervisor.v1 import container_pb2
from cellmesh.guest.containers.ingress import _PATIENCE_AT_START as PATIENCE_AT_START
from cellmesh.guest.containers.ingress import CONNECTIONS, NOT_LISTENING
from cellmesh.hypervisor.bridge.client import BridgeClient
from support.cell import Cell, Variable
from support.real_node import PATIENCE

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module")]

RUNNING = common_container_pb2.CONTAINER_STATE_RUNNING
MIB = 1 << 20
Answer = TypeVar("Answer", str, bytes)
ENDED = {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR}
REFUSED = 111
CONNECT = """
import errno, socket, sys
with socket.socket() as connection:
    sys.exit(connection.connect_ex(("127.0.0.1", int(sys.argv[1]))))
"""
"""Ends with the errno of connecting to a port."""
HOST = """
import asyncio
async def welcome(reader, writer):
    writer.write(b"welcome")
    await reader.read()
    writer.close()
async def main():
    async with await asyncio.start_server(welcome, "127.0.0.1", 8080, backlog=1024) as server:
        await server.serve_forever()
asyncio.run(main())
"""
"""Welcomes every connection and keeps it until the other side ends it."""


async def running(cell: Cell, name: str) -> container_pb2.Container:
    """Wait until a container runs, and return it."""
    return await cell.until(name, lambda status: status.state == RUNNING)


def door(cell: Cell, container: container_pb2.Container) -> Path:
    """Return the host's socket that leads to this generation of a container."""
    directory = cell.it.run_dir / "in" / cell.vm_id.replace("-", "")[:12]
    return directory / f"{container.container_name}.{container.epoch}.{container.generation}"


@asynccontextmanager
async def visitor(path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """Give a client whose every connection is one to this socket."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession("http://cell", connector=aiohttp.UnixConnector(str(path)), timeout=timeout) as it:
        yield it


async def who(path: Path) -> str:
    """Return the name of the application that answers; empty if none does."""
    try:
        async with visitor(path) as session, session.get("/whoami") as answer:
            return str((await answer.json())["container"]) if answer.status == HTTPStatus.OK else ""
    except aiohttp.ClientConnectionError:
        return ""


async def until_some(ask: Callable[[Path], Awaitable[Answer]], path: Path) -> Answer:
    """Ask until there is an answer, and return it."""
    async with asyncio.timeout(PATIENCE):
        while (answer := await ask(path)) in {"", b"", NOT_LISTENING}:  # noqa: ASYNC110 - what happens in a guest sets no event here
            await asyncio.sleep(0.1)
    return answer


async def answered(path: Path) -> str:
    """Wait until an application answers, and return its name."""
    return await until_some(who, path)


@asynccontextmanager
async def asked(path: Path) -> AsyncIterator[bytes]:
    """Connect, ask, and give what comes back first; nothing if the connection ends instead. It stays open meanwhile."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        try:
            async with asyncio.timeout(PATIENCE):
                writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
                first = await reader.read(1024)
        except ConnectionError:
            first = b""
        yield first
    finally:
        writer.transport.abort()


async def first_bytes(path: Path) -> bytes:
    """Connect, ask, and return what comes back first; nothing if the connection ends instead."""
    async with asked(path) as first:
        return first


def bridge(cell: Cell) -> BridgeClient:
    """Return the VM's bridge."""
    return BridgeClient(directory=cell.it.run_dir / "vm" / cell.vm_id.replace("-", "")[:12])


@asynccontextmanager
async def second_door(cell: Cell, first: Path) -> AsyncIterator[Path]:
    """Open another socket to where an ingress socket leads, by an agent's name, so that nobody closes or bounds it."""
    listeners: Any = (await bridge(cell).stats())["listeners"]
    await bridge(cell).add("agent.second", listeners[first.name]["port"])
    try:
        yield bridge(cell).directory / "in" / "agent.second"
    finally:
        await bridge(cell).remove("agent.second")


async def test_a_container_serves_pages_sockets_and_files_to_the_host(cell: Cell) -> None:
    """A page, an upload, a WebSocket and 20 MB come through unchanged, all over the same way."""
    path = door(cell, await running(cell, "sandbox-live"))
    async with visitor(path) as session:
        async with session.get("/") as answer:
            assert (answer.status, answer.headers["X-App"]) == (200, "sandbox-live")
            assert "<html" in await answer.text()
        async with session.ws_connect("/ws") as socket:
            for message in ("one", "two", "three" * 1000):
                await socket.send_str(message)
                assert (await socket.receive_str()) == message
        size = 20 * MIB
        async with session.get("/download", params={"size": size}) as answer:
            got = await answer.read()
        assert got == (bytes(range(256)) * (size // 256))
        async with session.post("/upload", data=io.BytesIO(got[: 4 * MIB])) as answer:
            assert (await answer.json())["sha256"] == hashlib.sha256(got[: 4 * MIB]).hexdigest()


async def test_each_door_leads_to_its_own_container(cell: Cell) -> None:
    """Live and dev serve the same port, each is reached by its own socket, and neither by the other from inside."""
    live, dev = [door(cell, await running(cell, name)) for name in ("sandbox-live", "sandbox-dev")]
    assert (await who(live), await who(dev)) == ("sandbox-live", "sandbox-dev")
    async with cell.running("other", environment=[Variable(name="PORT", value="8123")], http_port=8123):
        other = door(cell, await running(cell, "other"))
        assert await answered(other) == "sandbox-dev"
        assert (await cell.live.run("python3", "-c", CONNECT, "8123")).exit_code == REFUSED


async def test_a_container_that_never_listens_is_said_so(cell: Cell) -> None:
    """The guest answers for it with the status that the edge has a page for, however long the container runs."""
    async with cell.running("deaf", "sleep", "86400"):
        assert await first_bytes(door(cell, await running(cell, "deaf"))) == NOT_LISTENING


async def test_a_restart_is_another_door_and_the_old_one_is_dead(cell: Cell) -> None:
    """Open connections end with their generation, and who still knows its port does not reach the next one."""
    async with cell.running("phoenix", image="dev"):
        old = await running(cell, "phoenix")
        assert await answered(door(cell, old)) == "sandbox-dev"
        async with second_door(cell, door(cell, old)) as dead:
            assert await who(dead) == "sandbox-dev"
            async with visitor(dead) as session, session.ws_connect("/ws") as socket:
                begun = time.monotonic()
                await cell.start("phoenix", image="live")
                new = await cell.until("phoenix", lambda status: status.generation > old.generation)
                assert (await socket.receive()).type in ENDED
            # It has hardly begun to import: who comes now waits in the guest, as long as the guest has patience.
            while not (name := await who(door(cell, new))):
                assert time.monotonic() - begun > PATIENCE_AT_START
            assert name == "sandbox-live"
            assert await first_bytes(dead) == b""
        assert not door(cell, old).exists()


async def test_a_container_has_a_bound_of_connections_of_its_own(cell: Cell) -> None:
    """One more than the bound is closed at once, other containers have room, and a place that is left is given anew."""
    live = door(cell, await running(cell, "sandbox-live"))
    async with (
        cell.running("host", "python3", "-c", HOST),
        second_door(cell, door(cell, await running(cell, "host"))) as path,
    ):
        assert await until_some(first_bytes, path) == b"welcome"
        async with AsyncExitStack() as stack:
            welcomed = 0
            async with asyncio.timeout(PATIENCE):
                while welcomed < CONNECTIONS:  # Those who asked before may still be leaving.
                    some = (stack.enter_async_context(asked(path)) for _ in range(min(32, CONNECTIONS - welcomed)))
                    welcomed += (await asyncio.gather(*some)).count(b"welcome")
            assert await first_bytes(path) == b""
            assert await who(live) == "sandbox-live"
        assert await until_some(first_bytes, path) == b"welcome"
