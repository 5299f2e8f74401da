"""Errors of a database that pass: typed, so that a caller knows to ask again."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, StatementError

from cellmesh.mesh.errors import Code, MeshError


class StoreUnavailable(MeshError):
    """The database cannot be used at the moment; whether the change was made is known to who asks again."""

    code = Code.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"


def unavailable(error: BaseException) -> StoreUnavailable | None:
    """Return what to tell of an error that is the database's and passes, or None if it is another."""
    cause = error.orig if isinstance(error, StatementError) else error
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return StoreUnavailable("The connection to the database broke. Send the request again.")
    if isinstance(cause, ConnectionError | TimeoutError | FileNotFoundError):
        return StoreUnavailable("The database cannot be reached. Start it, or wait for it, and send the request again.")
    # SQLite's result codes SQLITE_FULL and SQLITE_IOERR, and PostgreSQL's class 53 and 57P0x.
    if getattr(cause, "sqlite_errorname", "").startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        return StoreUnavailable("The disk of the database is full or broken. Make room, then send the request again.")
    if str(getattr(cause, "sqlstate", "") or "").startswith(("53", "57P")):
        return StoreUnavailable("The database has no room, or is being stopped. Send the request again later.")
    return None
