"""The end of the hypervisor, as waits and streams hear of it."""

from __future__ import annotations

import asyncio

import pytest

from cellmesh.hypervisor.domain.errors import NodeShuttingDown
from cellmesh.service.shutdown import Shutdown

pytestmark = pytest.mark.asyncio


async def test_what_waits_is_ended_and_what_comes_later_is_refused() -> None:
    """A wait that would last for ever ends with NodeShuttingDown before `begin` returns, and nothing new is let in."""
    shutdown, entered = Shutdown(NodeShuttingDown), asyncio.Event()

    async def wait() -> None:
        async with shutdown.ends():
            entered.set()
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await entered.wait()
    await shutdown.begin()
    assert waiting.done()
    with pytest.raises(NodeShuttingDown):
        await waiting
    with pytest.raises(NodeShuttingDown):
        await wait()


async def test_a_timeout_of_the_call_itself_is_not_a_shutdown() -> None:
    """A TimeoutError from within passes through as it is."""
    shutdown = Shutdown(NodeShuttingDown)

    async def time_out() -> None:
        async with shutdown.ends():
            raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        await time_out()
