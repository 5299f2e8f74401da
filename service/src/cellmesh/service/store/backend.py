"""What a database is to the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cellmesh.service.store.connection import Connection


class Backend(Protocol):
    """An open database."""

    writer: Connection
    """Whose transactions come one after another, also with those of other processes."""
    readers: Sequence[Connection]
    """Whose transactions see one moment."""
    poll: float | None
    """Seconds after which to look for commits of other processes; None if there are none."""

    async def maintain(self) -> None:
        """Do what the database needs from time to time; no transaction of `writer` may be open."""

    async def close(self) -> None:
        """Close every connection."""


def backend_of(location: Path | str, *, service: str) -> Backend:
    """Return the database at a path (SQLite), or at a URL such as `postgresql:///auth?host=/run/postgresql`."""
    if isinstance(location, Path):
        from cellmesh.service.store.sqlite import SqliteBackend

        return SqliteBackend(location)
    # A service on SQLite need not have the driver.
    from cellmesh.service.store.postgres import PostgresBackend

    return PostgresBackend(location, service=service)
