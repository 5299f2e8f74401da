"""Writes down who was refused because a contract does not let it call, at a rate that nobody can drive up."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from cellmesh.mesh.identity import Caller
from cellmesh.mesh.logs import LineBudget
from cellmesh.service.audit.callers import NOBODY, who_is
from cellmesh.service.store import Action, Decision, Fact, Store, Who

_log = structlog.get_logger()
REFUSED = Action("call.refused", {"left_out": Fact.NUMBER})
"""A call that its caller may not make; `left_out` were not written down since the entry before."""


class Refusals:
    """Takes calls that were refused, and writes entries in transactions of their own."""

    def __init__(self, store: Store[Any, Any], *, budget: LineBudget | None = None) -> None:
        self._store = store
        self._budget = budget or LineBudget()
        # No longer than the burst of the budget, unless the database is away.
        self._taken: asyncio.Queue[tuple[str, Who, int]] = asyncio.Queue(maxsize=64)

    def note(self, method: str, caller: Caller | None) -> None:
        """Take a call that was refused; it is written soon, or counted in the next entry."""
        if self._taken.full() or (left_out := self._budget.take()) is None:
            return
        self._taken.put_nowait((method.lstrip("/"), NOBODY if caller is None else who_is(caller), left_out))

    async def run(self) -> None:
        """Write what was taken, until cancelled."""
        while True:
            method, who, left_out = await self._taken.get()
            try:
                async with self._store.transaction() as tx:
                    await tx.audit(
                        REFUSED, resource=method, decision=Decision.DENIED, who=who, facts={"left_out": left_out}
                    )
            except Exception as error:
                _log.error("audit.refusal_lost", method=method, caller=who.name, exc_info=error)
