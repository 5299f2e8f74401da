"""Whether an edge is slower than another one that is asked in turn with it, on the same machine at the same time."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence

from support.envoy import BOB, EdgeUnderTest
from support.http_client import get

SLOWER = 3.0
"""How many times longer a request may take where others do what they like: they share the machine with both edges."""


async def times_slower(
    edge: EdgeUnderTest,
    quiet: EdgeUnderTest,
    enough: Callable[[int], bool],
    asked: Sequence[tuple[str, str]] = ((BOB, "/"),),
) -> float:
    """Return how many times longer than at a quiet edge a request takes, in the middle of those asked in turn.

    `asked` are users and paths, `enough` is given the number of requests of each edge.
    """
    waited: dict[EdgeUnderTest, list[float]] = {edge: [], quiet: []}
    while not enough(len(waited[quiet])):
        for user, path in asked:
            for each, times in waited.items():
                begun = time.monotonic()
                assert (await get(each.socket, path, user=user)).status == 200
                times.append(time.monotonic() - begun)
        await asyncio.sleep(0.01)
    return statistics.median(waited[edge]) / statistics.median(waited[quiet])
