"""Connections to agents: as many as are used, and few for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

from cellmesh.api.guest.v1 import container_service_pb2, container_service_pb2_grpc
from cellmesh.hypervisor.domain.errors import GuestUnreachable
from cellmesh.hypervisor.guest.client import MOST_IDLE, GuestClient

pytestmark = pytest.mark.asyncio
SOON = timedelta(seconds=30)


@dataclass
class Agents(container_service_pb2_grpc.GuestContainerServiceServicer):
    """Agents without containers, behind doors that count who is inside."""

    directory: Path
    open: dict[str, int] = field(default_factory=dict)
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Event = field(default_factory=asyncio.Event)

    async def ListContainers(
        self, _request: container_service_pb2.ListContainersRequest, _context: object
    ) -> container_service_pb2.ListContainersResponse:
        """Say that there are none, unless held back."""
        self.held.set()
        await self.hold.wait()
        return container_service_pb2.ListContainersResponse()

    def door(self, vm_id: str, epoch: int) -> Path:
        """Return where the agent of one boot is reached."""
        return self.directory / f"{vm_id}.{epoch}"

    @asynccontextmanager
    async def at(self, vm_id: str, epoch: int) -> AsyncIterator[None]:
        """Open the door of one boot."""
        self.open.setdefault(vm_id, 0)

        async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.open[vm_id] += 1
            inner_reader, inner_writer = await asyncio.open_unix_connection(self.directory / "agent")
            try:
                await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))
            finally:
                self.open[vm_id] -= 1

        async with await asyncio.start_unix_server(join, self.door(vm_id, epoch)):
            yield


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until there are no more."""
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest_asyncio.fixture
async def agents(tmp_path: Path) -> AsyncIterator[Agents]:
    """Give agents that answer."""
    it, server = Agents(tmp_path), grpc.aio.server()
    it.hold.set()
    container_service_pb2_grpc.add_GuestContainerServiceServicer_to_server(it, server)
    server.add_insecure_port(f"unix:{tmp_path}/agent")
    await server.start()
    yield it
    await server.stop(grace=0)


async def until_open(agents: Agents, expected: int) -> None:
    """Wait until so many connections are open."""
    async with asyncio.timeout(30):
        while sum(agents.open.values()) != expected:  # noqa: ASYNC110  # gRPC's own threads close them
            await asyncio.sleep(0.01)


async def test_few_connections_are_kept_for_nobody(agents: Agents) -> None:
    """The ones used last stay, and one with a call on it is not closed for having waited longest."""
    names = [f"vm{number}" for number in range(MOST_IDLE + 5)]
    client = GuestClient(agents.door)
    async with AsyncExitStack() as doors:
        for name in names:
            await doors.enter_async_context(agents.at(name, 1))
        agents.hold.clear()
        longest = asyncio.create_task(client.claims(names[0], 1, SOON))
        await agents.held.wait()
        agents.hold.set()
        for name in names[1:]:
            assert await client.claims(name, 1, SOON) == []
        assert await longest == []
        await until_open(agents, MOST_IDLE)
        assert agents.open[names[-1]] == 1
        assert await client.claims(names[1], 1, SOON) == []
        await client.close()
        await until_open(agents, 0)


async def test_another_boot_is_another_connection(agents: Agents) -> None:
    """A connection to the boot before is closed when the next one is called."""
    client = GuestClient(agents.door)
    async with agents.at("vm", 1):
        await client.claims("vm", 1, SOON)
        await until_open(agents, 1)
        async with agents.at("vm", 2):
            await client.claims("vm", 2, SOON)
            await until_open(agents, 1)
            await client.close()
            await until_open(agents, 0)


async def refusal(client: GuestClient) -> str:
    """Return why a call failed; its error would keep the connection."""
    try:
        await client.claims("vm", 1, SOON)
    except GuestUnreachable as error:
        return error.message
    return ""


async def test_who_is_hung_up_on_is_told_and_not_cancelled(agents: Agents) -> None:
    """A call that runs when its connection is closed ends with an error of the contract: its task goes on."""
    client = GuestClient(agents.door)
    async with agents.at("vm", 1):
        agents.hold.clear()
        calling = asyncio.create_task(refusal(client))
        await agents.held.wait()
        await client.hang_up("vm")
        assert "was closed while it was asked" in await calling
        await until_open(agents, 0)


async def test_who_gives_up_is_cancelled(agents: Agents) -> None:
    """A caller's own cancellation stays one, even while its connection is being closed."""
    client = GuestClient(agents.door)
    async with agents.at("vm", 1):
        agents.hold.clear()
        calling = asyncio.create_task(client.claims("vm", 1, SOON))
        await agents.held.wait()
        calling.cancel()
        await client.hang_up("vm")
        with pytest.raises(asyncio.CancelledError):
            await calling
        await until_open(agents, 0)
