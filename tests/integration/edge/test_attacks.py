"""The table of requests that are not meant well, against the real Envoy (drills 19, 23 and 24)."""

from __future__ import annotations

import pytest

from support import attacks
from support.envoy import EdgeUnderTest, furnish, running_edge

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_each_attack_is_refused_or_is_one_plain_request(edge: EdgeUnderTest) -> None:
    """Prove of the whole table: the status is the one that is due, and the container sees nothing else."""
    assert await attacks.unmet(edge, attacks.ALL) == {}


async def test_without_the_hardening_the_table_fails() -> None:
    """Prove that the table can fail: each row that a setting answers for fails without that setting."""
    async with running_edge(spoil=attacks.unhardened) as open_edge:
        await furnish(open_edge)
        unmet = await attacks.unmet(open_edge, attacks.ALL)
    assert set(unmet) == attacks.UNMET_WHEN_UNHARDENED
