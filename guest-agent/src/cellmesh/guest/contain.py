"""Keeping one task's unforeseen error from ending the agent, and with it the VM."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable

from cellmesh.guest.boot import say

_PAUSE = 1.0


async def contain(work: Awaitable[None], what: str) -> None:
    """Do the work; an error nobody foresaw is written to the console and ends this work alone."""
    try:
        await work
    except Exception as error:
        traceback.print_exc()
        say(f"{what} ended: {type(error).__name__}: {error}")


async def persist(work: Callable[[], Awaitable[None]], what: str) -> None:
    """Do work that has no end, again after each error nobody foresaw."""
    while True:
        await contain(work(), what)
        await asyncio.sleep(_PAUSE)
