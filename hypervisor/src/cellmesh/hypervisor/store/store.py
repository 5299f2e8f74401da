"""The open database of the node, with what was committed last in memory."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime

from cellmesh.hypervisor.store.mirror import Mirror
from cellmesh.hypervisor.store.schema import SCHEMA
from cellmesh.hypervisor.store.transaction import Reading, Transaction
from cellmesh.service import store
from cellmesh.service.store import Who
from cellmesh.service.store.backend import Backend


class Store(store.Store[Reading, Transaction]):
    """The state of the node. Open it with `Store.opened`."""

    schema = SCHEMA
    reading_type = Reading
    transaction_type = Transaction

    def __init__(
        self,
        backend: Backend,
        *,
        clock: Callable[[], datetime],
        trace_id: Callable[[], str],
        who: Callable[[], Who | None],
    ) -> None:
        super().__init__(backend, clock=clock, trace_id=trace_id, who=who)
        self.mirror = Mirror()

    async def load(self) -> None:
        """Name a new node, and read the VMs into memory."""
        async with self.transaction() as tx:
            await tx.name_node(str(uuid.uuid4()))
        async with self.reading() as reading:
            await self.mirror.load(reading)

    def committed(self, transaction: Transaction) -> None:
        """Take over the changes of a transaction into memory."""
        self.mirror.apply(transaction)
