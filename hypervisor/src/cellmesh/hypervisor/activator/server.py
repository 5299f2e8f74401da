"""The activator's server: one answer to any request, at once, whatever comes with it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket

import structlog
from aiohttp import web

from cellmesh.hypervisor.activator import asked, page, verdict
from cellmesh.hypervisor.activator.activations import Activations
from cellmesh.hypervisor.activator.asked import Asked, NotFromEdge
from cellmesh.hypervisor.activator.page import Waiting
from cellmesh.hypervisor.activator.verdict import Verdict
from cellmesh.hypervisor.activator.waits import Waits
from cellmesh.mesh import logs, telemetry, unix_socket

_HEALTH = "/healthz"
# Above what the edge lets through, so that it is the edge who refuses.
_HEADER_BYTES = 64 << 10
_HEADERS = 256
# The edge keeps more connections than it has requests; a full backlog would refuse it.
_BACKLOG = 1024
# How long what a client goes on sending is thrown away after the answer: closing at once would take the answer with it.
_LINGER_SECONDS = 2.0
_STOP_SECONDS = 1.0

_log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Responder:
    """Makes answers of verdicts."""

    activations: Activations
    """Who asks the hypervisor."""
    wait_budget: float
    """Seconds a wait usually takes at most."""
    waits: Waits = field(default_factory=Waits)
    """Since when routes are waited for."""
    lines: logs.LineBudget = field(default_factory=logs.LineBudget)
    """How much may be written about what goes wrong."""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request, whatever it is, without a look at its body."""
        response = await self._answer(request)
        if request.body_exists or "upgrade" in request.headers:
            # What follows is no next request.
            response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        if not asked.is_the_edges(request.headers):
            return _health(request)
        try:
            question = asked.read(request.method, request.headers)
        except NotFromEdge as error:
            return _for_program(verdict.bad_request(f"{error}."), trace_id=telemetry.trace_id())
        with telemetry.request("activator.request", question.traceparent) as trace_id:
            try:
                said = await self.activations.verdict(question.route)
            except Exception:
                said = verdict.internal()
                if (left_out := self.lines.take()) is not None:
                    _log.exception("activator.failed", lines_left_out=left_out)
            return self._made(question, said, trace_id)

    def _made(self, question: Asked, said: Verdict, trace_id: str) -> web.Response:
        if said.waits:
            waiting = Waiting(seconds=self.waits.seconds(question.route), budget=self.wait_budget)
        else:
            self.waits.over(question.route)
            waiting = Waiting(seconds=0.0, budget=self.wait_budget)
        if said.reason == verdict.ROUTE_SERVING:
            self.waits.over(question.route)
        if question.by_browser:
            return _for_browser(said, waiting, trace_id=trace_id)
        if waiting.seconds >= waiting.budget:
            said = verdict.late(said, int(waiting.seconds))
        return _for_program(said, trace_id=trace_id, request_id=question.request_id)


def _health(request: web.BaseRequest) -> web.Response:
    """Answer about ourselves: only what did not come through the edge gets here."""
    if request.path == _HEALTH and request.method in {"GET", "HEAD"}:
        return web.json_response({"status": "ok"}, headers={"cache-control": "no-store"})
    return _for_program(
        verdict.bad_request(f"The request does not say who asks: it did not come through the edge. Ask for {_HEALTH}."),
        trace_id=telemetry.trace_id(),
    )


def _headers(said: Verdict) -> dict[str, str]:
    headers = {
        "cache-control": "no-store",
        "vary": "accept",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        page.REASON_HEADER: said.reason,
    }
    if said.retry_after is not None:
        headers["retry-after"] = str(said.retry_after)
    return headers


def _for_browser(said: Verdict, waiting: Waiting, *, trace_id: str) -> web.Response:
    return web.Response(
        status=said.status,
        headers={**_headers(said), "content-security-policy": page.CONTENT_SECURITY_POLICY},
        content_type="text/html",
        charset="utf-8",
        text=page.render(said, waiting, trace_id=trace_id),
    )


def _for_program(said: Verdict, *, trace_id: str, request_id: str = "") -> web.Response:
    body: dict[str, object] = {
        "code": said.code.name,
        "reason": said.reason,
        "message": said.message,
        "trace_id": trace_id,
    }
    if request_id:
        body["request_id"] = request_id
    if said.retry_after is not None:
        body["retry_after_seconds"] = said.retry_after
    return web.Response(
        status=said.status,
        headers=_headers(said),
        content_type="application/json",
        text=f"{json.dumps(body)}\n",
    )


class _Connection(web.RequestHandler):
    """A connection that never repeats what it was sent, neither to the client nor to the log."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002  # aiohttp's signature
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # repeats what was sent
    ) -> web.StreamResponse:
        """Answer what is no HTTP, or what failed before it was asked."""
        if (left_out := _UNREADABLE_LINES.take()) is not None:
            _log.info("activator.unreadable", status=status, error=type(exc).__name__, lines_left_out=left_out)
        said = verdict.internal() if status >= HTTPStatus.INTERNAL_SERVER_ERROR else _UNREADABLE
        response = _for_program(said, trace_id=telemetry.trace_id())
        response.force_close()
        return response


_UNREADABLE_LINES = logs.LineBudget()
_UNREADABLE = verdict.bad_request("The request cannot be read. Correct its line and its headers.")


class _Server(web.Server):
    """Makes connections of our kind."""

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


@contextmanager
def listening(path: Path, *, gid: int | None) -> Iterator[socket]:
    """Hold a socket that the edge's group may connect to; raise OSError, SocketUnavailable among them.

    It goes on being served after our privileges went, though it could not be made again then.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not there. Start the hypervisor first: it makes it.")
    with unix_socket.claim(path), socket(AF_UNIX, SOCK_STREAM) as listener:
        with unix_socket.closed():
            listener.bind(str(path))
        unix_socket.hand_over(path, mode=0o660, owner=None if gid is None else (-1, gid))
        listener.setblocking(False)  # noqa: FBT003  # as the standard library has it
        try:
            yield listener
        finally:
            with suppress(OSError):
                path.unlink()


@asynccontextmanager
async def serving(responder: Responder, listener: socket) -> AsyncIterator[None]:
    """Answer what comes in on a socket."""
    server = _Server(
        responder.answer,
        access_log=None,
        # A body is thrown away as it is; a small one could be unpacked to a large one.
        auto_decompress=False,
        lingering_time=_LINGER_SECONDS,
        max_field_size=_HEADER_BYTES,
        max_headers=_HEADERS,
        max_line_size=_HEADER_BYTES,
    )
    runner = web.ServerRunner(server, shutdown_timeout=_STOP_SECONDS)
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=_BACKLOG).start()
        yield
    finally:
        await runner.cleanup()
