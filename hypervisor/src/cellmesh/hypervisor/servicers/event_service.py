"""EventService: what happened on the node."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cellmesh.api.hypervisor.v1 import event_service_pb2, event_service_pb2_grpc
from cellmesh.hypervisor.servicers import encode
from cellmesh.hypervisor.servicers.watches import Watches
from cellmesh.hypervisor.store import Store
from cellmesh.mesh.interceptor import Context
from cellmesh.mesh.pages import PageTokens, page_size

_LARGEST_SEQUENCE = 2**63 - 1


class EventServicer(event_service_pb2_grpc.EventServiceServicer):
    """Decodes, reads the journal, encodes."""

    def __init__(self, store: Store, *, watches: Watches, pages: PageTokens) -> None:
        self._store = store
        self._watches = watches
        self._pages = pages

    async def ListEvents(
        self, request: event_service_pb2.ListEventsRequest, _: Context
    ) -> event_service_pb2.ListEventsResponse:
        """List events, oldest first."""
        size = page_size(request.page.page_size)
        token = request.page.page_token
        after = int(self._pages.decode(request, token)) if token else min(request.after_sequence, _LARGEST_SEQUENCE)
        async with self._store.reading() as reading:
            entries = await reading.entries(after=after, limit=size + 1, vm_id=request.vm_id, events_only=True)
        page, more = entries[:size], len(entries) > size
        return event_service_pb2.ListEventsResponse(
            events=[encode.entry(entry) for entry in page],
            next_page_token=self._pages.encode(request, str(page[-1].sequence)) if more else "",
        )

    def WatchEvents(
        self, request: event_service_pb2.WatchEventsRequest, _: Context
    ) -> AsyncIterator[event_service_pb2.WatchEventsResponse]:
        """Stream events as they are committed."""
        # Itself, not passed on item by item: what is closed early then ends here and now, and not with the collector.
        return self._watches.events(request.vm_id, request.resume_token, from_beginning=request.from_beginning)
