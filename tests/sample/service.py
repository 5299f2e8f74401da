"""NoteService, its wiring and its process: `python -m sample.service`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import notes_pb2
import notes_pb2_grpc

from cellmesh.mesh.errors import DownstreamUnavailable
from cellmesh.mesh.pages import PageTokens, page_size
from cellmesh.mesh.server import MeshServer
from cellmesh.mesh.settings import Settings
from cellmesh.mesh.tokens import TokenSigner
from cellmesh.mesh.watch import Bookmark, ResumeTokens
from cellmesh.service import process
from cellmesh.service.answers import intent_of
from cellmesh.service.audit.callers import calling
from cellmesh.service.audit.log import AuditLog
from cellmesh.service.journal import Journal
from cellmesh.service.shutdown import Shutdown
from sample.store import ADD_NOTE, Note, NoteExists, Notes, entry


class NoteSettings(Settings):
    """What the service reads from the environment."""

    database: str = ""
    """The URL of a PostgreSQL database; empty is a file in `state_dir`."""


class NoteServicer(notes_pb2_grpc.NoteServiceServicer):
    """Decodes, asks the store, encodes."""

    def __init__(self, notes: Notes, journal: Journal[Note], signer: TokenSigner, shutdown: Shutdown) -> None:
        self._notes = notes
        self._journal = journal
        self._pages = PageTokens(signer)
        self._resumes = ResumeTokens(signer, "notes")
        self._shutdown = shutdown

    async def AddNote(self, request: Any, _: Any) -> Any:
        """Add a note."""
        intent = intent_of(
            request, notes_pb2.AddNoteResponse, lambda note: notes_pb2.AddNoteResponse(note=_encode(note))
        )
        note = Note(request.note.name, request.note.body)
        async with self._notes.transaction() as tx:
            if (answer := await tx.answered(intent)) is not None:
                return answer
            if await tx.note(note.name) is not None:
                raise NoteExists(f"There is a note {note.name}; choose another name.")
            await tx.add(note)
            # Its name is free text, which has no place in an audit log.
            await tx.audit(ADD_NOTE, resource="notes", facts={"characters": len(note.body)})
            return await tx.answer(intent, note)

    async def ListNotes(self, request: Any, _: Any) -> Any:
        """List notes, by name."""
        size, token = page_size(request.page.page_size), request.page.page_token
        async with self._notes.reading() as reading:
            found = await reading.notes(after=self._pages.decode(request, token) if token else "", limit=size + 1)
        more = self._pages.encode(request, found[size - 1].name) if len(found) > size else ""
        return notes_pb2.ListNotesResponse(notes=map(_encode, found[:size]), next_page_token=more)

    async def WatchNotes(self, request: Any, _: Any) -> AsyncIterator[Any]:
        """Stream notes as they are added."""
        position = self._resumes.decode(request.resume_token) if request.resume_token else 0
        async with self._shutdown.ends(), aclosing(self._journal.follow(position, lambda _: True)) as changes:
            async for change in changes:
                note = None if isinstance(change, Bookmark) else _encode(change.item)
                yield notes_pb2.WatchNotesResponse(note=note, resume_token=self._resumes.encode(change.position))


def _encode(note: Note) -> Any:
    return notes_pb2.Note(name=note.name, body=note.body)


@asynccontextmanager
async def serving(settings: NoteSettings) -> AsyncIterator[None]:
    """Be the service inside."""
    shutdown = Shutdown(lambda: DownstreamUnavailable("The service stops. Send the request again."))
    async with AsyncExitStack() as stack:
        database = settings.database or settings.state_dir / "notes.db"
        notes = await stack.enter_async_context(Notes.opened(database, who=calling))
        journal = await Journal.opened(notes, entry)
        async with notes.reading() as reading:
            signer = TokenSigner(await reading.token_key())
        audit_dir = settings.state_dir / "audit"
        log = await stack.enter_async_context(AuditLog.opened(notes, audit_dir, signer=signer, shutdown=shutdown))
        servicer = NoteServicer(notes, journal, signer, shutdown)
        register = functools.partial(notes_pb2_grpc.add_NoteServiceServicer_to_server, servicer)
        server = MeshServer([register, log.register], refused=log.refusals.note)
        server.add_operator_socket(settings.run_dir / "notes.sock")
        tasks = asyncio.gather(journal.relay(), log.run())
        async with server:
            yield
            await shutdown.begin()
        tasks.cancel()


if __name__ == "__main__":
    process.run("notes", NoteSettings, serving)
