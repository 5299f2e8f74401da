"""AuditService: the audit log of a service, for its operators."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

from sqlalchemy import Select, func, select

from cellmesh.api.audit.v1 import audit_service_pb2 as pb
from cellmesh.api.audit.v1 import audit_service_pb2_grpc
from cellmesh.mesh.interceptor import Context
from cellmesh.mesh.pages import PageTokens, page_size
from cellmesh.mesh.tokens import TokenSigner
from cellmesh.mesh.watch import Bookmark, Change, ResumeTokens
from cellmesh.service.audit.seals import Seals
from cellmesh.service.audit.verify import verify
from cellmesh.service.journal import Journal
from cellmesh.service.shutdown import Shutdown
from cellmesh.service.store import Store

_DECISIONS = {
    "ALLOWED": pb.DECISION_ALLOWED,
    "DENIED": pb.DECISION_DENIED,
    "FAILED": pb.DECISION_FAILED,
}
_NAMES = {number: name for name, number in _DECISIONS.items()}


class Entries(Journal[pb.AuditEntry]):
    """The entries of an audit log, as its watchers see them."""

    @classmethod
    async def of(cls, store: Store[Any, Any]) -> Entries:
        """Return the entries of a store's log."""
        entries = cls(store, encode, published=0)
        entries._published = await entries.newest()
        return entries

    async def oldest(self) -> int:
        """Return the position of the oldest entry that is kept, or where the next one will be."""
        column = self._store.schema.audit.rows.c.sequence
        return await self._number(select(func.coalesce(func.min(column), 1)))

    async def newest(self) -> int:
        """Return the position of the newest entry, 0 if there is none."""
        column = self._store.schema.audit.rows.c.sequence
        return await self._number(select(func.coalesce(func.max(column), 0)))

    async def after(self, position: int, limit: int) -> Sequence[Change[pb.AuditEntry]]:
        """Return at most `limit` entries after a position, oldest first."""
        rows = self._store.schema.audit.rows
        query = select(rows).where(rows.c.sequence > position).order_by(rows.c.sequence).limit(limit)
        return [Change(position=entry.sequence, item=entry) for entry in await self.selected(query)]

    async def before(self, position: int | None, limit: int, wanted: pb.AuditFilter) -> Sequence[pb.AuditEntry]:
        """Return at most `limit` entries before a position, newest first."""
        rows = self._store.schema.audit.rows
        query = select(rows).order_by(rows.c.sequence.desc()).limit(limit)
        if position is not None:
            query = query.where(rows.c.sequence < position)
        if wanted.user_id:
            query = query.where(rows.c.user_id == wanted.user_id)
        if wanted.resource_prefix:
            query = query.where(rows.c.resource.startswith(wanted.resource_prefix, autoescape=True))
        if wanted.decision:
            query = query.where(rows.c.decision == _NAMES[wanted.decision])
        return await self.selected(query)

    async def selected(self, query: Select[Any]) -> Sequence[pb.AuditEntry]:
        """Return the entries of a query."""
        async with self._store.reading() as reading:
            found = await reading.step(lambda connection: connection.execute(query).mappings().all())
        return [encode(row) for row in found]

    async def _number(self, query: Select[Any]) -> int:
        async with self._store.reading() as reading:
            return int(await reading.step(lambda connection: connection.execute(query).scalar_one()))


class AuditServicer(audit_service_pb2_grpc.AuditServiceServicer):
    """Lists, watches and checks a log."""

    def __init__(self, seals: Seals, entries: Entries, signer: TokenSigner, shutdown: Shutdown) -> None:
        self._seals = seals
        self._entries = entries
        self._pages = PageTokens(signer)
        self._resumes = ResumeTokens(signer, "audit")
        self._shutdown = shutdown

    async def ListAudit(self, request: pb.ListAuditRequest, _: Context) -> pb.ListAuditResponse:
        """List entries, newest first."""
        size, token = page_size(request.page.page_size), request.page.page_token
        before = int(self._pages.decode(request, token)) if token else None
        found = await self._entries.before(before, size + 1, request.filter)
        more = self._pages.encode(request, str(found[size - 1].sequence)) if len(found) > size else ""
        return pb.ListAuditResponse(entries=found[:size], next_page_token=more)

    async def WatchAudit(self, request: pb.WatchAuditRequest, _: Context) -> AsyncIterator[pb.WatchAuditResponse]:
        """Stream entries as they are committed."""
        query = request.filter.SerializeToString(deterministic=True).hex()
        if request.resume_token:
            position = self._resumes.decode(request.resume_token, query)
        else:
            position = await self._entries.newest()
        following = self._entries.follow(position, lambda entry: _is_wanted(entry, request.filter))
        async with self._shutdown.ends(), aclosing(following) as changes:
            async for change in changes:
                answer = pb.WatchAuditResponse(resume_token=self._resumes.encode(change.position, query))
                if isinstance(change, Bookmark):
                    answer.bookmark.SetInParent()
                else:
                    answer.entry.CopyFrom(change.item)
                yield answer

    async def VerifyAudit(self, request: pb.VerifyAuditRequest, _: Context) -> pb.VerifyAuditResponse:
        """Check the log."""
        async with self._shutdown.ends():
            verdict = await verify(self._seals, after=request.after_sequence)
        answer = pb.VerifyAuditResponse(
            fault=verdict.fault,
            wrong_sequence=max(verdict.wrong_row, 0),
            entry_count=verdict.rows,
            first_sequence=verdict.first,
        )
        if verdict.newest is not None:
            answer.signed_sequence = verdict.newest.sequence
            answer.sign_time.FromMicroseconds(verdict.newest.time)
        return answer


def _is_wanted(entry: pb.AuditEntry, wanted: pb.AuditFilter) -> bool:
    return (
        wanted.user_id in ("", entry.user_id)
        and entry.resource.startswith(wanted.resource_prefix)
        and wanted.decision in (pb.DECISION_UNSPECIFIED, entry.decision)
    )


def encode(row: Mapping[Any, Any]) -> pb.AuditEntry:
    """Return the entry of a row, also of one that was tampered with: only a check says what is wrong with it."""
    entry = pb.AuditEntry(
        sequence=max(int(row["sequence"]), 0),
        caller_role=str(row["caller_role"]),
        caller_name=str(row["caller_name"]),
        user_id=str(row["user_id"]),
        action=str(row["action"]),
        resource=str(row["resource"]),
        decision=_DECISIONS.get(row["decision"], pb.DECISION_UNSPECIFIED),
        trace_id=str(row["trace_id"]),
        hash=str(row["hash"]),
    )
    with suppress(ValueError, TypeError):
        entry.time.FromMicroseconds(row["time"])
    with suppress(ValueError, TypeError, AttributeError):
        entry.facts.extend(_fact(name, value) for name, value in json.loads(row["facts"]).items())
    return entry


def _fact(name: str, value: object) -> pb.AuditEntry.Fact:
    if isinstance(value, bool):
        return pb.AuditEntry.Fact(name=name, flag=value)
    if isinstance(value, int):
        return pb.AuditEntry.Fact(name=name, number=value)
    return pb.AuditEntry.Fact(name=name, word=str(value))
