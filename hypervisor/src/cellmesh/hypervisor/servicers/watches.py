"""The two watches over the one journal: VMs after each change, and events as they happen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from cellmesh.api.hypervisor.v1 import event_service_pb2, vm_service_pb2
from cellmesh.hypervisor.domain.event import Entry
from cellmesh.hypervisor.domain.vm import Vm
from cellmesh.hypervisor.servicers import encode
from cellmesh.hypervisor.store import Store
from cellmesh.mesh.tokens import TokenSigner
from cellmesh.mesh.watch import Bookmark, ResumeTokens
from cellmesh.service.journal import Journal
from cellmesh.service.shutdown import Shutdown


class Watches:
    """Makes the streams of WatchVms and WatchEvents."""

    def __init__(self, store: Store, journal: Journal[Entry], signer: TokenSigner, *, shutdown: Shutdown) -> None:
        self._store = store
        self._journal = journal
        self._shutdown = shutdown
        self._vm_tokens = ResumeTokens(signer, "vms")
        self._event_tokens = ResumeTokens(signer, "events")

    async def vms(self, vm_id: str, token: bytes) -> AsyncIterator[vm_service_pb2.WatchVmsResponse]:
        """Yield what there is, unless a token says what is known, and then every change."""
        if token:
            position = self._vm_tokens.decode(token, vm_id)
        else:
            position, vms = await self._snapshot()
            for vm in vms:
                if vm_id in ("", vm.vm_id):
                    # No token yet: a stream that breaks here begins anew, as the rest was not told.
                    yield vm_service_pb2.WatchVmsResponse(vm=encode.vm(vm))

        def wanted(entry: Entry) -> bool:
            return entry.vm is not None and vm_id in ("", entry.vm.vm_id)

        async with self._shutdown.ends(), aclosing(self._journal.follow(position, wanted)) as changes:
            async for change in changes:
                answer = vm_service_pb2.WatchVmsResponse(resume_token=self._vm_tokens.encode(change.position, vm_id))
                if isinstance(change, Bookmark):
                    answer.bookmark.caught_up = change.caught_up
                elif change.item.vm is not None:
                    answer.vm.CopyFrom(encode.vm(change.item.vm))
                yield answer

    async def events(
        self, vm_id: str, token: bytes, *, from_beginning: bool
    ) -> AsyncIterator[event_service_pb2.WatchEventsResponse]:
        """Yield every event after a token, from the oldest kept, or from now on."""
        if token:
            position = self._event_tokens.decode(token, vm_id)
        elif from_beginning:
            position = await self._journal.oldest() - 1
        else:
            position = await self._journal.newest()

        def wanted(entry: Entry) -> bool:
            return entry.payload is not None and vm_id in ("", entry.subject.vm_id)

        first = self._event_tokens.encode(position, vm_id)
        yield event_service_pb2.WatchEventsResponse(
            bookmark=event_service_pb2.WatchEventsResponse.Bookmark(), resume_token=first
        )
        async with self._shutdown.ends(), aclosing(self._journal.follow(position, wanted)) as changes:
            async for change in changes:
                answer = event_service_pb2.WatchEventsResponse(
                    resume_token=self._event_tokens.encode(change.position, vm_id)
                )
                if isinstance(change, Bookmark):
                    answer.bookmark.SetInParent()
                else:
                    answer.event.CopyFrom(encode.entry(change.item))
                yield answer

    async def _snapshot(self) -> tuple[int, Sequence[Vm]]:
        """Return every VM, and the position of the newest entry that they show."""
        async with self._store.reading() as reading:
            return await reading.last_sequence(), await reading.vms()
