"""The two watches over the one log: VMs as they become, and events as they happen."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import cast

from cellmesh.api.hypervisor.v1 import event_service_pb2, vm_service_pb2
from cellmesh.hypervisor.domain.event import Entry
from cellmesh.hypervisor.lifecycle.log import Log
from cellmesh.hypervisor.servicers import encode
from cellmesh.hypervisor.servicers.shutdown import Shutdown
from cellmesh.mesh.tokens import TokenSigner
from cellmesh.mesh.watch import HEARTBEAT, Bookmark, Change, ResumeTokens, follow


class Watches:
    """Makes the streams of WatchVms and WatchEvents."""

    def __init__(self, log: Log, signer: TokenSigner, *, shutdown: Shutdown) -> None:
        self._log = log
        self._shutdown = shutdown
        self._vm_tokens = ResumeTokens(signer, "vms")
        self._event_tokens = ResumeTokens(signer, "events")

    async def vms(self, vm_id: str, token: bytes) -> AsyncIterator[vm_service_pb2.WatchVmsResponse]:
        """Yield what there is, unless a token says what is known, and then every change."""
        if token:
            position = self._vm_tokens.decode(token, vm_id)
        else:
            position, vms = await self._log.snapshot()
            for vm in vms:
                if vm_id in ("", vm.vm_id):
                    # No token yet: a stream that breaks here begins anew, as the rest was not told.
                    yield vm_service_pb2.WatchVmsResponse(vm=encode.vm(vm))

        def wanted(entry: Entry) -> bool:
            return entry.vm is not None and vm_id in ("", entry.vm.vm_id)

        async with self._shutdown.ends(), aclosing(followed(self._log, position, wanted)) as changes:
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
            position = await self._log.oldest() - 1
        else:
            position = await self._log.newest()

        def wanted(entry: Entry) -> bool:
            return entry.payload is not None and vm_id in ("", entry.subject.vm_id)

        first = self._event_tokens.encode(position, vm_id)
        yield event_service_pb2.WatchEventsResponse(
            bookmark=event_service_pb2.WatchEventsResponse.Bookmark(), resume_token=first
        )
        async with self._shutdown.ends(), aclosing(followed(self._log, position, wanted)) as changes:
            async for change in changes:
                answer = event_service_pb2.WatchEventsResponse(
                    resume_token=self._event_tokens.encode(change.position, vm_id)
                )
                if isinstance(change, Bookmark):
                    answer.bookmark.SetInParent()
                else:
                    answer.event.CopyFrom(encode.entry(change.item))
                yield answer


async def followed(
    log: Log, position: int, wanted: Callable[[Entry], bool]
) -> AsyncGenerator[Change[Entry] | Bookmark, None]:
    """Yield the changes that are wanted; a busy log of others must not starve the watcher of bookmarks."""
    told = time.monotonic()
    following = cast("AsyncGenerator[Change[Entry] | Bookmark, None]", follow(log.hub, log, position))
    async with aclosing(following) as changes:
        async for change in changes:
            if isinstance(change, Bookmark) or wanted(change.item):
                yield change
            elif time.monotonic() - told >= HEARTBEAT:
                yield Bookmark(position=change.position)
            else:
                continue
            told = time.monotonic()
