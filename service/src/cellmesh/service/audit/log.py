"""The audit log of a service as a whole: signed, served, watched, and with the calls that were refused in it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cellmesh.api.audit.v1.audit_service_pb2_grpc import add_AuditServiceServicer_to_server
from cellmesh.mesh.server import Register
from cellmesh.mesh.tokens import TokenSigner
from cellmesh.service.audit.refusals import Refusals
from cellmesh.service.audit.seals import Seals
from cellmesh.service.audit.servicer import AuditServicer, Entries
from cellmesh.service.shutdown import Shutdown
from cellmesh.service.store import Store


class AuditLog:
    """What a service does for its audit log. Give `register` and `refusals.note` to its server, and `run` it."""

    def __init__(self, seals: Seals, entries: Entries, refusals: Refusals, register: Register) -> None:
        self._seals = seals
        self._entries = entries
        self.refusals = refusals
        """Takes the calls that the server refused."""
        self.register = register
        """Adds AuditService to a server."""

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, store: Store[Any, Any], directory: Path, *, signer: TokenSigner, shutdown: Shutdown
    ) -> AsyncIterator[AuditLog]:
        """Open the log of a store; the key and the signed heads are in `directory`. It is signed at the end.

        Raises AuditKeyUnusable, OSError.
        """
        async with Seals.opened(store, directory) as seals:
            entries = await Entries.of(store)
            servicer = AuditServicer(seals, entries, signer, shutdown)
            register = functools.partial(add_AuditServiceServicer_to_server, servicer)
            yield cls(seals, entries, Refusals(store), register)

    async def run(self) -> None:
        """Sign, publish to watchers, and write down refusals, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._seals.run())
            tasks.create_task(self._entries.relay())
            tasks.create_task(self.refusals.run())
