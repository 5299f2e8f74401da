"""What a service reads in one moment, and what it changes in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import RowMapping, Select, bindparam, delete, func, insert, select, update

from cellmesh.mesh.errors import MeshError, RequestIdReused
from cellmesh.service.intent import Answer, Intent, Serializable
from cellmesh.service.store.audit import CHANGED, NO_FACTS, Action, Chain, Decision, Facts, Who, values_of
from cellmesh.service.store.connection import Connection, Step
from cellmesh.service.store.schema import Schema

S = TypeVar("S")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(time: datetime) -> int:
    """Return a moment as microseconds since 1970."""
    return (time - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """Return the moment of so many microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=micros)


class Statements:
    """The statements that every transaction may need, built once: building one costs more than SQLite takes for it."""

    def __init__(self, schema: Schema) -> None:
        journal, state, answers = schema.journal, schema.state, schema.answers
        of_intent = (answers.c.method == bindparam("of_method"), answers.c.request_id == bindparam("of_request"))
        self.last_sequence = select(func.coalesce(func.max(journal.c.sequence), 0))
        self.entries = select(journal).where(journal.c.sequence > bindparam("after")).order_by(journal.c.sequence)
        self.add_entry = insert(journal).inline()
        self.prune_entries = delete(journal).where(journal.c.sequence <= bindparam("last"))
        self.pruned_sequence = select(state.c.pruned_sequence)
        self.set_pruned_sequence = update(state).values(pruned_sequence=bindparam("last"))
        self.token_key = select(state.c.token_key)
        self.answer = select(answers).where(*of_intent)
        self.add_answer = insert(answers)
        self.remove_answer = delete(answers).where(*of_intent)
        self.prune_answers = delete(answers).where(answers.c.time < bindparam("before"))
        self.chain = Chain(schema.audit)


class Reading:
    """The state as it was at one moment."""

    def __init__(self, connection: Connection, statements: Statements) -> None:
        self._connection = connection
        self._statements = statements

    async def step(self, step: Step[S]) -> S:
        """Take a step with the connection itself, for a part of the kit that has statements of its own."""
        return await self._connection.run(step)

    async def last_sequence(self) -> int:
        """Return the sequence of the newest entry of the journal, 0 if there is none."""
        return await self._connection.scalar(self._statements.last_sequence)

    async def pruned_sequence(self) -> int:
        """Return the sequence up to which entries of the journal are no longer kept, 0 if all are."""
        return await self._connection.scalar(self._statements.pruned_sequence)

    async def token_key(self) -> bytes:
        """Return the secret that signs page and resume tokens."""
        (row,) = await self._connection.execute(self._statements.token_key)
        return bytes(row["token_key"])

    async def rows(
        self, query: Select[Any] | None = None, *, after: int, limit: int, **values: object
    ) -> Sequence[RowMapping]:
        """Return rows of the journal after a sequence, oldest first; `query` narrows `Statements.entries`."""
        wanted = (self._statements.entries if query is None else query).limit(limit)
        return await self._connection.execute(wanted, {"after": after, **values})


class Transaction(Reading):
    """Changes that are committed together with their entries in the journal and their answer, or not at all."""

    def __init__(
        self, connection: Connection, statements: Statements, *, now: datetime, trace_id: str, who: Who
    ) -> None:
        super().__init__(connection, statements)
        self.now = now
        self.trace_id = trace_id
        self.who = who
        self.touched: set[str] = set()
        """The keys whose watchers are notified after the commit."""
        self.follow_ups: list[Callable[[], None]] = []
        """Called after the commit, whatever becomes of the caller who committed."""

    async def answered(self, intent: Intent[Answer]) -> Answer | None:
        """Return the answer that an intent got before, or None.

        Raises RequestIdReused if the `request_id` was used for another request, and the refusal if that was the answer.
        """
        found = await self._connection.execute(self._statements.answer, _key(intent))
        if not found:
            return None
        row = found[0]
        if bytes(row["fingerprint"]) != intent.fingerprint:
            raise RequestIdReused(
                "This request_id was used for another request. Choose a new one for each intent.",
                metadata={"request_id": intent.request_id},
            )
        if row["refused"]:
            raise intent.decode_refusal(bytes(row["answer"]))
        return intent.decode(bytes(row["answer"]))

    async def answer(self, intent: Intent[Answer], value: object) -> Answer:
        """Store the answer to an intent that has none, and return it."""
        answer = intent.encode(value)
        self._put(intent, answer, refused=False)
        return answer

    async def refuse(self, intent: Intent[Answer], error: MeshError) -> None:
        """Store a refusal as the answer to an intent, in place of one that it may have."""
        self._connection.write(self._statements.remove_answer, _key(intent))
        self._put(intent, intent.encode_refusal(error), refused=True)

    def _put(self, intent: Intent[Any], answer: Serializable, *, refused: bool) -> None:
        row = {
            "method": intent.method,
            "request_id": intent.request_id,
            "fingerprint": intent.fingerprint,
            "refused": refused,
            "answer": answer.SerializeToString(deterministic=True),
            "time": to_micros(self.now),
        }
        self._connection.write(self._statements.add_answer, row)

    async def append(self, values: Mapping[str, Any], *, key: str) -> None:
        """Append an entry to the journal; watchers of `key` are notified after the commit."""
        row = {"time": to_micros(self.now), "trace_id": self.trace_id, **values}
        self._connection.write(self._statements.add_entry, row)
        self.touched.add(key)

    async def audit(
        self,
        action: Action,
        *,
        resource: str,
        decision: Decision = Decision.ALLOWED,
        who: Who | None = None,
        facts: Facts = NO_FACTS,
    ) -> None:
        """Append an entry to the audit log, of the caller unless `who` is given.

        Raises ValueError for a fact that `action` does not declare, or that is of another type than it declares.

        A resource is the id of what was acted on, such as `vms/6f1c…`. An entry has no room for what a request says:
        give facts that the action declares, and never a value that is secret.
        """
        values = values_of(action, who or self.who, resource=resource, decision=decision, facts=facts)
        row = {"time": to_micros(self.now), "trace_id": self.trace_id, **values}
        self._connection.write_by(self._statements.chain.appending(row))
        self.touched.add(CHANGED)

    async def prune(self, *, keep_entries: int, answers_before: datetime) -> None:
        """Forget all but the newest entries of the journal, and answers older than a moment."""
        last = await self.last_sequence() - keep_entries
        if last > await self.pruned_sequence():
            self._connection.write(self._statements.prune_entries, {"last": last})
            self._connection.write(self._statements.set_pruned_sequence, {"last": last})
        self._connection.write(self._statements.prune_answers, {"before": to_micros(answers_before)})


def _key(intent: Intent[Any]) -> dict[str, str]:
    return {"of_method": intent.method, "of_request": intent.request_id}
