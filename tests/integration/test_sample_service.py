"""The smallest service there can be: what a service gets from the kit without a line of its own."""

from __future__ import annotations

import asyncio
import importlib
import resource
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cellmesh.api.audit.v1 import audit_service_pb2 as audit_pb2
from cellmesh.api.audit.v1.audit_service_pb2_grpc import AuditServiceStub
from cellmesh.mesh.channel import MeshChannel, unix_channel
from cellmesh.mesh.errors import InvalidRequest, MeshError, RemoteError
from support import contracts
from support.node import short_directory
from support.postgres import PostgresServer
from support.sample_service import generate, sample_service

SECONDS = 120.0
_MOST_LINES = 150


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the directory of the contract's Python modules."""
    directory = tmp_path_factory.mktemp("generated")
    generate(directory)
    return directory


@pytest.fixture
def pb(generated: Path) -> ModuleType:
    """Give the contract's messages."""
    return importlib.import_module("notes_pb2")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """Give what the service's setting `database` is."""
    if request.param == "sqlite":
        yield ""
        return
    server = PostgresServer()
    try:
        server.start()
        yield server.create_database_now()
    finally:
        server.stop()


class Client:
    """Calls the service."""

    def __init__(self, channel: MeshChannel, pb: ModuleType) -> None:
        self._stub = importlib.import_module("notes_pb2_grpc").NoteServiceStub(channel)
        self.pb = pb

    async def add(self, name: str, *, request_id: str = "", body: str = "") -> Any:
        """Add a note and return it."""
        note = self.pb.Note(name=name, body=body)
        request = self.pb.AddNoteRequest(request_id=request_id or str(uuid.uuid4()), note=note)
        return (await self._stub.AddNote(request)).note

    async def names(self, page_size: int) -> list[str]:
        """Return the names of all notes, page by page."""
        request, found = self.pb.ListNotesRequest(), []
        request.page.page_size = page_size
        while True:
            answer = await self._stub.ListNotes(request)
            assert len(answer.notes) <= page_size
            found += [note.name for note in answer.notes]
            if not answer.next_page_token:
                return found
            request.page.page_token = answer.next_page_token

    def watch(self) -> AsyncIterator[Any]:
        """Return the answers of a watch from the beginning."""
        answers: AsyncIterator[Any] = aiter(self._stub.WatchNotes(self.pb.WatchNotesRequest()))
        return answers

    async def watched(self, count: int, token: bytes = b"") -> tuple[list[str], bytes]:
        """Return the names of the next notes, and what resumes the watch after them."""
        found: list[str] = []
        watch = self._stub.WatchNotes(self.pb.WatchNotesRequest(resume_token=token))
        async for answer in watch:
            if answer.HasField("note"):
                found.append(answer.note.name)
            token = answer.resume_token
            if len(found) == count:
                break
        watch.cancel()
        return found, token


@pytest.mark.asyncio
async def test_it_answers_lists_watches_and_comes_back(database: str, generated: Path, pb: ModuleType) -> None:
    """One mutation, one list, one watch; a repeated request and a watch go on where they were after SIGKILL."""
    request_id = str(uuid.uuid4())
    with short_directory() as directory:
        with sample_service(directory, generated, database):
            async with asyncio.timeout(SECONDS), unix_channel(directory / "notes.sock", downstream="notes") as channel:
                client = Client(channel, pb)
                first = await client.add("b", request_id=request_id, body="first")
                for name in "cade":
                    await client.add(name)
                assert await client.names(2) == list("abcde")
                seen, token = await client.watched(3)
                assert seen == ["b", "c", "a"]
                with pytest.raises(RemoteError, match="choose another name") as refused:
                    await client.add("b")
                assert refused.value.reason == "NOTE_EXISTS"
                with pytest.raises(RemoteError) as refused:
                    await client.add("other", request_id=request_id)
                assert refused.value.reason == "REQUEST_ID_REUSED"
                with pytest.raises((RemoteError, InvalidRequest)):
                    await client.add("")
        with sample_service(directory, generated, database):
            async with asyncio.timeout(SECONDS), unix_channel(directory / "notes.sock", downstream="notes") as channel:
                client = Client(channel, pb)
                assert await client.add("b", request_id=request_id, body="first") == first
                await client.add("f")
                assert await client.watched(3, token) == (["d", "e", "f"], (await client.watched(6))[1])


@pytest.mark.asyncio
async def test_its_operators_see_who_did_what(database: str, generated: Path, pb: ModuleType) -> None:
    """The audit log is listed in pages, checked, watched and resumed across SIGKILL; a refusal adds nothing."""
    with short_directory() as directory:
        with sample_service(directory, generated, database):
            async with asyncio.timeout(SECONDS), unix_channel(directory / "notes.sock", downstream="notes") as channel:
                client, audit = Client(channel, pb), AuditServiceStub(channel)
                watch = audit.WatchAudit(audit_pb2.WatchAuditRequest())
                answers = aiter(watch)
                assert (await anext(answers)).HasField("bookmark")
                for name in "abc":
                    await client.add(name, body="body")
                with pytest.raises(RemoteError):
                    await client.add("a")
                seen = [await anext(answers) for _ in range(2)]
                assert [answer.entry.sequence for answer in seen] == [1, 2]
                watch.cancel()  # type: ignore[attr-defined]  # mesh's streams can be
        with sample_service(directory, generated, database):
            async with asyncio.timeout(SECONDS), unix_channel(directory / "notes.sock", downstream="notes") as channel:
                audit = AuditServiceStub(channel)
                request = audit_pb2.ListAuditRequest(page={"page_size": 2}, filter={"resource_prefix": "notes"})
                page = await audit.ListAudit(request)
                assert [entry.sequence for entry in page.entries] == [3, 2]
                request.page.page_token = page.next_page_token
                page = await audit.ListAudit(request)
                (entry,) = page.entries
                assert (entry.sequence, entry.caller_role, entry.action) == (1, "operator", "note.add")
                assert [(fact.name, fact.number) for fact in entry.facts] == [("characters", 4)]
                assert entry.decision == audit_pb2.DECISION_ALLOWED
                assert page.next_page_token == ""
                denied = audit_pb2.ListAuditRequest(filter={"decision": audit_pb2.DECISION_DENIED})
                assert list((await audit.ListAudit(denied)).entries) == []
                resumed = aiter(audit.WatchAudit(audit_pb2.WatchAuditRequest(resume_token=seen[1].resume_token)))
                assert (await anext(resumed)).entry.sequence == 3
                verdict = await audit.VerifyAudit(audit_pb2.VerifyAuditRequest())
                assert (verdict.fault, verdict.entry_count, verdict.signed_sequence) == ("", 3, 3)


@pytest.mark.asyncio
async def test_it_stops_when_it_is_told_to(generated: Path, pb: ModuleType) -> None:
    """SIGTERM ends it with 0, and a watch that is open hears why."""
    with ExitStack() as stack:
        directory = stack.enter_context(short_directory())
        service = stack.enter_context(sample_service(directory, generated, ""))
        async with asyncio.timeout(SECONDS), unix_channel(directory / "notes.sock", downstream="notes") as channel:
            client = Client(channel, pb)
            await client.add("a")
            watch = client.watch()
            assert (await anext(watch)).note.name == "a"
            service.send_signal(signal.SIGTERM)
            with pytest.raises(MeshError, match="The service stops"):
                await _all(watch)
            assert await asyncio.to_thread(service.wait) == 0


def test_it_may_open_as_many_files_as_the_kernel_allows(generated: Path) -> None:
    """A shell's limit is raised to what may be had, at most 65,536, and what it may be raised to is kept."""
    with ExitStack() as stack:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        directory = stack.enter_context(short_directory())
        service = stack.enter_context(sample_service(directory, generated, ""))
        assert resource.prlimit(service.pid, resource.RLIMIT_NOFILE) == (min(hard, 65_536), hard)


async def _all(answers: AsyncIterator[Any]) -> None:
    async for _ in answers:
        pass


def test_it_is_small() -> None:
    """All of it but its contract: the lines that are not empty."""
    lines = [
        line
        for path in (contracts.ROOT / "tests" / "sample").glob("*.py")
        for line in path.read_text().splitlines()
        if line.strip()
    ]
    assert len(lines) <= _MOST_LINES
