"""What a request gets: the hypervisor's word in a status, a reason and a sentence, or why there is none."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from cellmesh.api.hypervisor.v1 import route_pb2, route_service_pb2
from cellmesh.hypervisor.activator import page, verdict
from cellmesh.hypervisor.domain.route import WaitReason
from cellmesh.mesh.breaker import BreakerOpen
from cellmesh.mesh.errors import Code, DeadlineExceeded, DownstreamUnavailable, InvalidAnswer, MeshError, RemoteError


def _response(
    *, state: str = "WAITING", retry_after: Duration | None = None, **route: Any
) -> route_service_pb2.ActivateRouteResponse:
    return route_service_pb2.ActivateRouteResponse(
        route=route_pb2.Route(
            state=f"ROUTE_STATE_{state}", target=route_pb2.RouteTarget(container_name="sandbox-live"), **route
        ),
        retry_after=retry_after,
    )


def _remote(code: Code, reason: str, **more: Any) -> RemoteError:
    return RemoteError("What happened. What to do.", code=code, reason=reason, domain="hypervisor.cellmesh", **more)


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [(Duration(), 1), (Duration(nanos=1), 1), (Duration(seconds=1), 1), (Duration(seconds=4, nanos=1_000), 5)],
)
def test_what_passes_by_itself_is_worth_asking_again(delay: Duration, seconds: int) -> None:
    """A route that waits is 503 with Retry-After in whole seconds, never none."""
    said = verdict.of_response(_response(reason="VM_STARTING", message="The VM is starting.", retry_after=delay))
    assert (said.status, said.code, said.reason, said.retry_after) == (503, Code.UNAVAILABLE, "VM_STARTING", seconds)
    assert (said.container, said.message) == ("sandbox-live", "The VM is starting.")


def test_what_takes_somebody_to_act_is_not() -> None:
    """A route that failed is 503 too, but nobody is told to come back."""
    said = verdict.of_response(_response(reason="VM_FAILED", message="The VM FAILED. Read its log."))
    assert (said.status, said.code, said.reason, said.retry_after) == (503, Code.FAILED_PRECONDITION, "VM_FAILED", None)
    assert not said.waits


def test_container_that_answers_by_now_is_worth_asking_at_once() -> None:
    """A request that lost the race with a switch is told to come again, whatever else the answer says."""
    said = verdict.of_response(_response(state="SERVING"))
    assert (said.status, said.reason, said.retry_after) == (503, "ROUTE_SERVING", 1)


def test_words_of_a_guest_are_bounded_and_escaped() -> None:
    """What reached us through the hypervisor from inside a cell drives no terminal and fills no page."""
    said = verdict.of_response(_response(reason="VM_FAILED", message="\x1b[2J\u202e" + "x" * 10_000))
    assert len(said.message) <= 600
    assert "\x1b" not in said.message
    assert "\u202e" not in said.message


@pytest.mark.parametrize(
    ("error", "status", "reason", "retry_after"),
    [
        (DownstreamUnavailable("gone"), 503, "HYPERVISOR_UNAVAILABLE", 2),
        (BreakerOpen("open", retry_after=timedelta(seconds=0.4)), 503, "HYPERVISOR_UNAVAILABLE", 1),
        (DeadlineExceeded("late"), 503, "HYPERVISOR_UNAVAILABLE", 2),
        (_remote(Code.UNAVAILABLE, "NODE_SHUTTING_DOWN"), 503, "HYPERVISOR_UNAVAILABLE", 2),
        (_remote(Code.NOT_FOUND, "VM_NOT_FOUND"), 404, "VM_NOT_FOUND", None),
        (_remote(Code.NOT_FOUND, "ROUTE_NOT_FOUND"), 404, "ROUTE_NOT_FOUND", None),
        (_remote(Code.FAILED_PRECONDITION, "VM_DELETING"), 503, "VM_DELETING", None),
        (_remote(Code.RESOURCE_EXHAUSTED, "NODE_FULL"), 429, "NODE_FULL", 2),
        (_remote(Code.RESOURCE_EXHAUSTED, "NODE_FULL", retry_after=timedelta(seconds=9)), 429, "NODE_FULL", 9),
        (_remote(Code.PERMISSION_DENIED, "CALLER_NOT_ALLOWED"), 500, "INTERNAL", None),
        (_remote(Code.INVALID_ARGUMENT, "INVALID_REQUEST"), 500, "INTERNAL", None),
        (_remote(Code.INTERNAL, "INTERNAL"), 500, "INTERNAL", None),
        (InvalidAnswer("no message"), 500, "INTERNAL", None),
    ],
    ids=lambda value: value.reason if isinstance(value, MeshError) else "",
)
def test_error_of_the_call_is_an_answer_too(
    error: MeshError, status: int, reason: str, retry_after: int | None
) -> None:
    """Every way a call can fail is told apart: who is away, what is not there, what is our own fault."""
    said = verdict.of_error(error)
    assert (said.status, said.reason, said.retry_after) == (status, reason, retry_after)
    assert said.message.endswith(".")


def test_our_own_fault_says_nothing_of_itself() -> None:
    """What the hypervisor refused of our question is for the log, not for whoever asked."""
    assert "What happened" not in verdict.of_error(_remote(Code.INVALID_ARGUMENT, "INVALID_REQUEST")).message


def test_every_reason_of_the_hypervisor_has_a_heading() -> None:
    """A person reads what the matter is in words, whichever reason it has."""
    assert set(WaitReason) <= set(page._HEADINGS)
    ours = {verdict.ROUTE_SERVING, verdict.HYPERVISOR_UNAVAILABLE, verdict.TOO_MANY_WAITING}
    assert ours | {"VM_NOT_FOUND", "ROUTE_NOT_FOUND"} == set(page._HEADINGS) - set(WaitReason)
