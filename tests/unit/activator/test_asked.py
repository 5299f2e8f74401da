"""What the edge says of a request is taken as it says it, or not at all."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from cellmesh.hypervisor.activator import asked
from cellmesh.hypervisor.activator.asked import NotFromEdge, RouteKey
from cellmesh.hypervisor.edge import routes

USER = "00000000-0000-4000-8000-000000000001"
TRACE = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def _headers(*more: tuple[str, str], user: str | None = USER) -> CIMultiDict[str]:
    return CIMultiDict([*([("X-Cellmesh-User", user)] if user is not None else []), *more])


def test_headers_are_those_the_edge_sets() -> None:
    """What is read is what Envoy is configured to write."""
    assert (asked.USER_HEADER, asked.PREFIX_HEADER) == (routes.USER_HEADER, routes.PREFIX_HEADER)


@pytest.mark.parametrize(
    ("header", "prefix"), [(None, "/"), ("/dev", "/dev/"), ("/_/notebook", "/_/notebook/"), ("/_/a-1", "/_/a-1/")]
)
def test_route_is_who_asks_and_what_was_taken_off_the_path(header: str | None, prefix: str) -> None:
    """The prefix the edge took off names the route; nothing taken off is `/`."""
    headers = _headers(*([("x-forwarded-prefix", header)] if header else []))
    assert asked.read("GET", headers).route == RouteKey(user_id=USER, prefix=prefix)


@pytest.mark.parametrize(
    "headers",
    [
        _headers(user=""),
        _headers(user=USER.upper().replace("0", "A")),
        _headers(user=f"{USER}/live"),
        _headers(user=f"{USER}\n"),
        _headers(("x-cellmesh-user", USER)),
        _headers(("x-forwarded-prefix", "/")),
        _headers(("x-forwarded-prefix", "/dev/")),
        _headers(("x-forwarded-prefix", "/_/")),
        _headers(("x-forwarded-prefix", "/_/A")),
        _headers(("x-forwarded-prefix", "/_/a/../b")),
        _headers(("x-forwarded-prefix", "/_/" + "a" * 33)),
        _headers(("x-forwarded-prefix", "/dev"), ("x-forwarded-prefix", "/dev")),
        _headers(("x-forwarded-prefix", "/dev,/dev")),
        _headers(("x-request-id", "a"), ("x-request-id", "b")),
    ],
    ids=repr,
)
def test_what_the_edge_never_says_is_refused(headers: CIMultiDict[str]) -> None:
    """A user or a prefix that is malformed or there twice names no route, and the refusal does not repeat it."""
    with pytest.raises(NotFromEdge) as refused:
        asked.read("GET", headers)
    assert not any(value in str(refused.value) for value in headers.values() if value and value.isalnum())


@pytest.mark.parametrize(
    ("method", "headers", "by_browser"),
    [
        ("GET", [("accept", FIREFOX)], True),
        ("GET", [("accept", FIREFOX), ("sec-fetch-mode", "navigate")], True),
        ("GET", [("accept", "text/html")], True),
        ("GET", [("accept", "Text/HTML;level=1")], True),
        ("GET", [("accept", "application/json"), ("accept", "text/html")], True),
        ("GET", [], False),
        ("GET", [("accept", "*/*")], False),
        ("GET", [("accept", "application/json")], False),
        ("GET", [("accept", "text/event-stream")], False),
        ("GET", [("accept", "text/html;q=0, */*")], False),
        ("GET", [("accept", "text/html;q=0.000")], False),
        ("GET", [("accept", "text/htmlx")], False),
        ("GET", [("accept", FIREFOX), ("sec-fetch-mode", "cors")], False),
        ("GET", [("accept", FIREFOX), ("sec-fetch-mode", "navigate"), ("sec-fetch-mode", "cors")], False),
        ("GET", [("accept", FIREFOX), ("upgrade", "websocket")], False),
        ("HEAD", [("accept", FIREFOX)], False),
        ("POST", [("accept", FIREFOX)], False),
        ("OPTIONS", [("accept", FIREFOX)], False),
    ],
)
def test_a_page_is_for_who_goes_to_one(method: str, headers: list[tuple[str, str]], *, by_browser: bool) -> None:
    """A person who opens an address gets a page; scripts, streams, forms and sockets get what programs get."""
    assert asked.read(method, _headers(*headers)).by_browser is by_browser


@pytest.mark.parametrize(
    ("headers", "trace_id"),
    [
        ([("traceparent", TRACE)], "0123456789abcdef0123456789abcdef"),
        ([("x-request-id", "11111111-2222-4333-8444-555555555555")], "11111111222243338444555555555555"),
        ([("traceparent", TRACE), ("x-request-id", USER)], "0123456789abcdef0123456789abcdef"),
        ([("traceparent", "00-" + "0" * 32 + "-0123456789abcdef-01"), ("x-request-id", USER)], USER.replace("-", "")),
    ],
)
def test_trace_is_the_edges(headers: list[tuple[str, str]], trace_id: str) -> None:
    """The trace Envoy began goes on; without one the request's id is the trace's."""
    assert asked.read("GET", _headers(*headers)).traceparent.split("-")[1] == trace_id


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("traceparent", "nonsense")],
        [("traceparent", TRACE), ("traceparent", TRACE)],
        [("traceparent", f"{TRACE}\r\nx: y")],
        [("x-request-id", "not an id")],
        [("x-request-id", "0" * 8 + "-0000-0000-0000-" + "0" * 12)],
    ],
)
def test_trace_that_is_none_is_left_out(headers: list[tuple[str, str]]) -> None:
    """Neither a malformed trace nor one of zeros is passed on."""
    assert asked.read("GET", _headers(*headers)).traceparent == ""
