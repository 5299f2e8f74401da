"""One connection to a database: it takes its steps in order, so a caller need not wait for what it no longer wants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import sqlalchemy
from sqlalchemy import Executable, RowMapping

T = TypeVar("T")
Step = Callable[[sqlalchemy.Connection], T]
"""What is done with a connection of SQLAlchemy; it must not keep it."""
Values = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""The parameters of a statement, or of several executions of it."""
_Write = Executable | Step[None]


class Driver(Protocol):
    """Takes the steps of one connection, in the order in which they were submitted, whatever becomes of the callers."""

    def submit(self, step: Step[T]) -> asyncio.Future[T]:
        """Take a step once those before it are done; the future holds its result or its error."""

    async def close(self) -> None:
        """Close the connection once all steps are taken."""


class Connection:
    """A connection and the transaction that is open on it, if one is."""

    def __init__(self, driver: Driver, *, begin: Sequence[Executable]) -> None:
        self._driver = driver
        self._begin: Sequence[tuple[_Write, Values | None]] = [(statement, None) for statement in begin]
        self._writes: list[tuple[_Write, Values | None]] = []

    def begin(self) -> None:
        """Begin a transaction with the next step, which fails if that cannot be; `commit` or `rollback` must follow."""
        # Not a step of its own: the way to the driver and back costs as much as most statements.
        self._writes = [*self._begin]

    def write(self, statement: Executable, values: Values | None = None) -> None:
        """Execute a statement that returns nothing with the next step, which fails if this statement does."""
        self._writes.append((statement, values))

    def write_by(self, step: Step[None]) -> None:
        """Take a step that writes what it has to read first, with the next step, which fails if this one does."""
        self._writes.append((step, None))

    def forget(self, since: Executable | None = None) -> bool:
        """Do not execute what was written after the last step, from `since` on; tell whether that was among it."""
        kept = next((index for index, (statement, _) in enumerate(self._writes) if statement is since), None)
        del self._writes[kept or 0 :]
        return kept is not None

    async def execute(self, statement: Executable, values: Values | None = None) -> Sequence[RowMapping]:
        """Execute a statement, once for each of several values, and return its rows."""

        def executed(connection: sqlalchemy.Connection) -> Sequence[RowMapping]:
            result = connection.execute(statement, values)
            return result.mappings().all() if result.returns_rows else ()

        return await self.run(executed)

    async def scalar(self, statement: Executable, values: Values | None = None) -> int:
        """Execute a statement that returns one number."""
        return await self.run(lambda connection: int(connection.execute(statement, values).scalar_one()))

    async def run(self, step: Step[T]) -> T:
        """Take a step, also if the caller is cancelled meanwhile: what was written before it must not be left out."""
        return await asyncio.shield(self.submit(step))

    async def flush(self) -> None:
        """Execute what was written so far; raise what it raises."""
        if self._writes:
            await self.run(_nothing)

    def commit(self) -> asyncio.Future[None]:
        """Commit, whether or not the caller waits for it; what fails is rolled back."""
        return self.submit(_commit)

    async def rollback(self) -> None:
        """End the transaction, if one is open, and undo its changes."""
        self.forget()
        await self.run(sqlalchemy.Connection.rollback)

    async def close(self) -> None:
        """Close the connection."""
        await self._driver.close()

    def submit(self, step: Step[T]) -> asyncio.Future[T]:
        """Take a step after all that was written before it, whether or not the caller waits for it."""
        writes, self._writes = self._writes, []

        def taken(connection: sqlalchemy.Connection) -> T:
            try:
                for write, values in writes:
                    if isinstance(write, Executable):
                        connection.execute(write, values)
                    else:
                        write(connection)
                return step(connection)
            except BaseException:
                if step is _commit:
                    connection.rollback()
                raise

        return self._driver.submit(taken)


def _nothing(_: sqlalchemy.Connection) -> None:
    pass


def _commit(connection: sqlalchemy.Connection) -> None:
    connection.commit()
