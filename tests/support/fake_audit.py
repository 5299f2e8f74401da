"""An audit log without a service behind it: for tests of what speaks to a node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.rpc import code_pb2

from cellmesh.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from support.fake_routes import refuse


class FakeAudit(audit_service_pb2_grpc.AuditServiceServicer):
    """Entries are a list, `verdict` is what a check answers; a watch breaks after its first entry unless resumed."""

    def __init__(self) -> None:
        self.entries: list[audit_service_pb2.AuditEntry] = []
        self.verdict = audit_service_pb2.VerifyAuditResponse()
        self.requests: list[Any] = []

    def add(self, **fields: Any) -> None:
        """Add an entry."""
        self.entries.append(audit_service_pb2.AuditEntry(sequence=len(self.entries) + 1, **fields))

    def ListAudit(self, request: audit_service_pb2.ListAuditRequest, _: Any) -> audit_service_pb2.ListAuditResponse:
        """Return a page; its token is the sequence it goes on before."""
        self.requests.append(request)
        before = int(request.page.page_token or len(self.entries) + 1)
        found = self.entries[: before - 1][::-1][: request.page.page_size]
        more = str(found[-1].sequence) if found and found[-1].sequence > 1 else ""
        return audit_service_pb2.ListAuditResponse(entries=found, next_page_token=more)

    def WatchAudit(
        self, request: audit_service_pb2.WatchAuditRequest, context: Any
    ) -> Iterator[audit_service_pb2.WatchAuditResponse]:
        """Send all entries after the token, and break after the first."""
        self.requests.append(request)
        position = int(request.resume_token or b"0")
        bookmark = audit_service_pb2.WatchAuditResponse.Bookmark()
        yield audit_service_pb2.WatchAuditResponse(bookmark=bookmark, resume_token=b"%d" % position)
        for entry in self.entries[position:]:
            yield audit_service_pb2.WatchAuditResponse(entry=entry, resume_token=b"%d" % entry.sequence)
            if not request.resume_token:
                refuse(context, code_pb2.UNAVAILABLE, "NODE_SHUTTING_DOWN", "it breaks here")

    def VerifyAudit(
        self, request: audit_service_pb2.VerifyAuditRequest, _: Any
    ) -> audit_service_pb2.VerifyAuditResponse:
        """Answer the verdict."""
        self.requests.append(request)
        return self.verdict
