"""The activator behind the real Envoy and before the real hypervisor: what reaches a client of a cell that is cold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from cellmesh.api.hypervisor.v1 import vm_pb2
from support.edge import Cell, Edge, edge_on_simulator

_PATIENCE = 120.0
_BROWSER = {"accept": "text/html", "sec-fetch-mode": "navigate"}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge() -> AsyncIterator[Edge]:
    """Give a node with its edge."""
    async with edge_on_simulator() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bare(edge: Edge) -> Cell:
    """Give a cell that runs and has no container: whatever is asked of it, the activator answers."""
    cell = await edge.cell_inside(containers=())
    async with edge.visitor(cell.user_id) as visitor, asyncio.timeout(_PATIENCE):
        while True:
            async with visitor.get("/") as answer:
                if (await answer.json())["reason"] == "CONTAINER_NOT_FOUND":
                    return cell
            await asyncio.sleep(0.02)


async def test_request_for_a_cold_cell_starts_it(edge: Edge) -> None:
    """Who asks for a stopped cell is told that it starts, and then gets the app."""
    cell = await edge.cell()
    await edge.it.stop_vm(cell.vm_id)
    stopped = await edge.it.until(cell.vm_id, vm_pb2.VM_STATE_STOPPED)
    reasons: list[str] = []
    async with edge.visitor(cell.user_id) as visitor, asyncio.timeout(_PATIENCE):
        while True:
            async with visitor.get("/") as answer:
                if answer.status == HTTPStatus.OK:
                    break
                said = await answer.json()
                assert answer.status == HTTPStatus.SERVICE_UNAVAILABLE
                assert int(answer.headers["retry-after"]) == said["retry_after_seconds"] >= 1
                reasons.append(said["reason"])
            await asyncio.sleep(0.02)
    assert "VM_STARTING" in reasons
    assert (await edge.it.get(cell.vm_id)).epoch > stopped.epoch


@pytest.mark.parametrize("prefix", ["/", "/dev/", "/dev", "/deep/path?token=secret"])
async def test_program_is_told_why(edge: Edge, bare: Cell, prefix: str) -> None:
    """Envoy hands on status, reason and words as the activator gave them, and adds no page of its own."""
    async with edge.visitor(bare.user_id) as visitor, visitor.get(prefix) as answer:
        assert answer.status == HTTPStatus.SERVICE_UNAVAILABLE
        assert "retry-after" not in answer.headers
        assert answer.headers["x-cellmesh-reason"] == "CONTAINER_NOT_FOUND"
        text = await answer.text()
        said = json.loads(text)
        assert (said["code"], said["reason"]) == ("FAILED_PRECONDITION", "CONTAINER_NOT_FOUND")
        assert ("sandbox-dev" if prefix.startswith("/dev") else "sandbox-live") in said["message"]
        assert "secret" not in text


async def test_person_is_shown_why(edge: Edge, bare: Cell) -> None:
    """A browser gets the page with its policy, through Envoy."""
    async with edge.visitor(bare.user_id) as visitor, visitor.get("/", headers=_BROWSER) as answer:
        assert (answer.status, answer.content_type) == (HTTPStatus.SERVICE_UNAVAILABLE, "text/html")
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")
        assert "<h1>There is no app here yet</h1>" in await answer.text()


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "DELETE"])
async def test_every_method_is_answered(edge: Edge, bare: Cell, method: str) -> None:
    """The page's script asks with OPTIONS; programs with whatever they have."""
    async with edge.visitor(bare.user_id) as visitor, visitor.request(method, "/", headers=_BROWSER) as answer:
        assert answer.status == HTTPStatus.SERVICE_UNAVAILABLE
        assert answer.headers["x-cellmesh-reason"] == "CONTAINER_NOT_FOUND"
        assert answer.content_type == "application/json"


@pytest.mark.parametrize("megabytes", [0, 1, 32])
async def test_upload_is_answered_whole(edge: Edge, bare: Cell, megabytes: int) -> None:
    """Who uploads to what cannot answer reads why, though nobody reads the upload: no reset takes the answer away."""

    async def body() -> AsyncIterator[bytes]:
        for _ in range(16 * megabytes):
            yield bytes(1 << 16)

    async with edge.visitor(bare.user_id) as visitor:
        for _ in range(10):
            async with visitor.post("/upload", data=body()) as answer:
                assert answer.status == HTTPStatus.SERVICE_UNAVAILABLE
                assert (await answer.json())["reason"] == "CONTAINER_NOT_FOUND"


async def test_websocket_is_told_why(edge: Edge, bare: Cell) -> None:
    """A handshake that cannot be made fails with the status and the reason."""
    async with edge.visitor(bare.user_id) as visitor:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await visitor.ws_connect("/ws")
    assert refused.value.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert refused.value.headers is not None
    assert refused.value.headers["x-cellmesh-reason"] == "CONTAINER_NOT_FOUND"


async def test_answer_is_found_in_the_log_by_its_ids(edge: Edge, bare: Cell) -> None:
    """The ids in the answer are those of the edge's log line."""
    async with edge.visitor(bare.user_id) as visitor, visitor.get("/marked") as answer:
        said = await answer.json()
    line = await _logged(edge.directory / "access.log", said["request_id"])
    assert line["trace_id"] == said["trace_id"]
    assert (line["user"], line["path"], line["status"]) == (bare.user_id, "/marked", 503)


async def test_crowd_of_users_that_wait_is_answered(edge: Edge, bare: Cell) -> None:
    """A hundred requests at once are all answered, none of them by Envoy for the activator."""
    async with edge.visitor(bare.user_id) as visitor:

        async def ask() -> str:
            async with visitor.get("/") as answer:
                return str((await answer.json())["reason"])

        reasons = await asyncio.gather(*(ask() for _ in range(100)))
    assert set(reasons) <= {"CONTAINER_NOT_FOUND", "TOO_MANY_WAITING"}
    assert "CONTAINER_NOT_FOUND" in reasons


async def _logged(log: Path, request_id: str) -> dict[str, object]:
    """Return the line of a request, once Envoy has written it."""
    async with asyncio.timeout(_PATIENCE):
        while True:
            written = log.read_text() if log.exists() else ""
            # A line may be read while it is written.
            for line in map(json.loads, written[: written.rfind("\n") + 1].splitlines()):
                if line["request_id"] == request_id:
                    return dict(line)
            await asyncio.sleep(0.1)
