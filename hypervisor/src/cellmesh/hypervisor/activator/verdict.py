"""What a request gets in place of its container's answer: a status, a reason, and words that say what to do."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import timedelta
from http import HTTPStatus

from cellmesh.api.hypervisor.v1 import route_pb2, route_service_pb2
from cellmesh.mesh.errors import Code, MeshError, sanitize

ROUTE_SERVING = "ROUTE_SERVING"
HYPERVISOR_UNAVAILABLE = "HYPERVISOR_UNAVAILABLE"
TOO_MANY_WAITING = "TOO_MANY_WAITING"

_MESSAGE = 600
_AWAY_SECONDS = 2
_CROWDED_SECONDS = 2
# A route that cannot answer until somebody acts is as unavailable as one that only waits, but nobody knows for how
# long: 503 without Retry-After. There was no upstream that 502 or 504 could speak of, and 424 is WebDAV's.
_STATUS = {
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.FAILED_PRECONDITION: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a request gets."""

    code: Code
    """What kind of failure it is."""
    reason: str
    """Machine-readable reason: a route's, such as VM_STARTING, or one of ours."""
    message: str
    """What happened and what to do."""
    retry_after: int | None = None
    """Whole seconds until asking again makes sense; None if it does not until somebody acts."""
    container: str = ""
    """The container that would have answered, as far as known."""

    @property
    def status(self) -> HTTPStatus:
        """Return the status of the answer."""
        return _STATUS.get(self.code, HTTPStatus.INTERNAL_SERVER_ERROR)

    @property
    def waits(self) -> bool:
        """Tell whether the request waits for something that comes by itself."""
        return self.retry_after is not None


def of_response(response: route_service_pb2.ActivateRouteResponse) -> Verdict:
    """Return what a request gets by the word of the hypervisor."""
    route = response.route
    container = sanitize(route.target.container_name, 64)
    if route.state == route_pb2.ROUTE_STATE_SERVING:
        # The edge has not heard yet, or heard after this request had gone; it takes milliseconds.
        return Verdict(
            code=Code.UNAVAILABLE,
            reason=ROUTE_SERVING,
            message=f"Container {container} answers by now. Ask again.",
            retry_after=1,
            container=container,
        )
    waits = response.HasField("retry_after")
    return Verdict(
        code=Code.UNAVAILABLE if waits else Code.FAILED_PRECONDITION,
        reason=sanitize(route.reason, 64) or "WAITING",
        message=sanitize(route.message, _MESSAGE),
        retry_after=_whole(response.retry_after.ToTimedelta()) if waits else None,
        container=container,
    )


def of_error(error: MeshError) -> Verdict:
    """Return what a request gets if the hypervisor could not be asked, or refused."""
    if error.code in {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}:
        return Verdict(
            code=Code.UNAVAILABLE,
            reason=HYPERVISOR_UNAVAILABLE,
            message="What starts cells did not answer; what runs goes on. Try again in a moment.",
            retry_after=_AWAY_SECONDS if error.retry_after is None else _whole(error.retry_after),
        )
    if error.code in {Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED}:
        after = None if error.retry_after is None else _whole(error.retry_after)
        if error.code is Code.RESOURCE_EXHAUSTED and after is None:
            after = _CROWDED_SECONDS
        message = sanitize(error.message, _MESSAGE)
        return Verdict(code=error.code, reason=error.reason, message=message, retry_after=after)
    return internal()


def too_many_waiting() -> Verdict:
    """Return what the requests get that are too many of one user."""
    return Verdict(
        code=Code.RESOURCE_EXHAUSTED,
        reason=TOO_MANY_WAITING,
        message="Too many of your requests wait at once. Wait for some of them, then go on more slowly.",
        retry_after=_CROWDED_SECONDS,
    )


def bad_request(message: str) -> Verdict:
    """Return what a request gets that could not be understood; nothing of it may stand in the message."""
    return Verdict(code=Code.INVALID_ARGUMENT, reason="BAD_REQUEST", message=message)


def internal() -> Verdict:
    """Return what a request gets that met a fault of ours."""
    return Verdict(
        code=Code.INTERNAL,
        reason="INTERNAL",
        message="Something failed in a way nobody expected. Tell whoever runs this node the trace id.",
    )


def late(verdict: Verdict, seconds: int) -> Verdict:
    """Return a verdict that says that the wait is longer than usual."""
    return replace(
        verdict,
        message=f"{verdict.message} It has taken {seconds} s so far, longer than usual; if it goes on, tell whoever "
        "runs this node the trace id.",
    )


def _whole(delay: timedelta) -> int:
    """Round up, as Retry-After knows no less than a second."""
    return max(1, math.ceil(delay.total_seconds()))
