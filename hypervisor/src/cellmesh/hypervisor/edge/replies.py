"""What Envoy answers itself, when nobody else can: what failed and what to do, for programs and for people."""

from __future__ import annotations

import html
from dataclasses import dataclass

from cellmesh.hypervisor.edge.options import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    reason: str
    message: str
    code: str = "UNAVAILABLE"
    flags: tuple[str, ...] = ()
    from_status: int = 0
    status: int = 0
    retry_after: int = 0
    refresh: int = 0
    """Seconds after which a person's page looks again by itself: a cell that comes back needs no one to reload it."""


# The first that matches is taken.
_REPLIES = (
    _Reply(
        reason="AUTHORIZER_UNREACHABLE",
        message="Who you are could not be asked: the authorizer did not answer. Try again in a moment.",
        flags=("UAEX",),
        from_status=503,
        retry_after=2,
        refresh=2,
    ),
    # Any other refusal of the authorizer's has words of its own.
    _Reply(reason="", message="", flags=("UAEX",)),
    _Reply(
        reason="NOT_FOUND",
        message="There is nothing of this name here. Look at the address.",
        code="NOT_FOUND",
        flags=("NC",),
        from_status=404,
    ),
    _Reply(
        reason="NO_CELL",
        message="You have no cell here, or it is just being made. Try again in a moment, or ask for one.",
        flags=("NC",),
        retry_after=5,
        refresh=5,
    ),
    _Reply(
        reason="UNKNOWN_HOST",
        message="No cell is served under this host name. Look at the address.",
        code="NOT_FOUND",
        flags=("NR",),
    ),
    _Reply(
        reason="CONTAINER_UNREACHABLE",
        message="The container does not take connections. Try again in a moment; if that lasts, look at its logs.",
        flags=("UF", "UH", "URX"),
        retry_after=2,
        refresh=2,
    ),
    _Reply(
        reason="CONTAINER_BUSY",
        message="The container has as many connections as it may have. Close some, or try again in a moment.",
        code="RESOURCE_EXHAUSTED",
        flags=("UO",),
        retry_after=2,
    ),
    _Reply(
        reason="CONTAINER_HUNG_UP",
        message="The container ended the connection before it had answered. Look at its logs, then try again.",
        flags=("UC", "UR"),
        status=502,
        refresh=5,
    ),
    _Reply(
        reason="CONTAINER_ANSWER_INVALID",
        message=(
            "The container's answer could not be read. It broke off, is not HTTP/1.1, or has more headers than are "
            "passed on; look at the container's logs."
        ),
        flags=("UPE",),
        status=502,
    ),
    _Reply(
        reason="CONTAINER_STATUS_UNKNOWN",
        message="The container answered with a status that does not exist. Have it answer with one from 200 to 599.",
        from_status=502,
    ),
    _Reply(
        reason="CONTAINER_NOT_LISTENING",
        # One that takes long to open its port counts as running before, unless it has a probe.
        message="The container does not listen on its port yet. Try again in a moment; if that lasts, read its logs.",
        from_status=503,
        retry_after=2,
        refresh=2,
    ),
    _Reply(
        reason="TOO_SLOW",
        message="Nothing happened for too long. Send sooner, or have the container answer sooner.",
        code="DEADLINE_EXCEEDED",
        flags=("UT", "SI", "DT", "UMSDR"),
    ),
    _Reply(
        reason="RATE_LIMITED",
        message="You ask too often. Wait a second, then go on more slowly.",
        code="RESOURCE_EXHAUSTED",
        flags=("RL",),
        retry_after=1,
    ),
    _Reply(
        reason="EDGE_OVERLOADED",
        message="Too much is going on here. Try again in a moment.",
        flags=("OM",),
        retry_after=5,
    ),
    _Reply(
        reason="BODY_TOO_LARGE",
        message="The body is larger than may be sent. Send it in parts.",
        code="OUT_OF_RANGE",
        from_status=413,
    ),
    _Reply(
        reason="HEADERS_TOO_LARGE",
        message="The headers are too many or too long. Send less, such as fewer cookies.",
        code="OUT_OF_RANGE",
        from_status=431,
    ),
    _Reply(
        reason="TOO_SLOW",
        message="The request took too long to arrive. Send it faster.",
        code="DEADLINE_EXCEEDED",
        from_status=408,
    ),
    _Reply(
        reason="RATE_LIMITED",
        message="You ask too often. Wait a second, then go on more slowly.",
        code="RESOURCE_EXHAUSTED",
        from_status=429,
        retry_after=1,
    ),
    _Reply(
        reason="BAD_REQUEST",
        message="The request is not one that can be passed on. Correct its path or its headers.",
        code="INVALID_ARGUMENT",
        from_status=400,
    ),
    _Reply(
        reason="METHOD_NOT_ALLOWED",
        message="This method is not passed on. Use another.",
        code="INVALID_ARGUMENT",
        from_status=405,
    ),
    _Reply(
        reason="HTTP_TOO_OLD",
        message="HTTP/1.0 is not spoken here. Use HTTP/1.1 or HTTP/2.",
        code="INVALID_ARGUMENT",
        from_status=426,
    ),
    _Reply(
        reason="ENCODING_UNKNOWN",
        message="Bodies come chunked or with their length, in no other way. Send this one so.",
        code="UNIMPLEMENTED",
        from_status=501,
    ),
    _Reply(
        reason="UPGRADE_REFUSED",
        message="Only WebSockets are upgraded to. Ask without the upgrade.",
        code="INVALID_ARGUMENT",
        from_status=403,
    ),
    _Reply(
        reason="NOT_FOUND",
        message="There is nothing at this path. Look at the address.",
        code="NOT_FOUND",
        from_status=404,
    ),
)

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
{refresh}<title>{title}</title>
<style>body{{font:1.1em/1.5 system-ui;max-width:36em;margin:15vh auto;padding:0 1em;color:#222;\
background:#fff}}code{{color:#666}}@media(prefers-color-scheme:dark){{body{{color:#ddd;background:#111}}}}</style>
<h1>{title}</h1><p>{message}</p>
<p><code>{reason} &middot; request %REQ(X-REQUEST-ID)%</code></p>
"""


def local_replies() -> Json:
    """Return the configuration of Envoy's own answers."""
    return {"mappers": [mapper for reply in _REPLIES for mapper in _mappers(reply)]}


def _mappers(reply: _Reply) -> list[Json]:
    filters = _filters(reply)
    if not reply.reason:
        return [{"filter": _all_of(filters)}]
    page = {"name": "accept", "string_match": {"contains": "text/html"}}
    get = {"name": ":method", "string_match": {"exact": "GET"}}
    browser: list[Json] = [{"header_filter": {"header": header}} for header in (page, get)]
    return [
        _mapper(reply, _all_of([*filters, *browser]), _page(reply)),
        _mapper(reply, _all_of(filters), _json(reply)),
    ]


def _filters(reply: _Reply) -> list[Json]:
    filters: list[Json] = []
    if reply.flags:
        filters.append({"response_flag_filter": {"flags": list(reply.flags)}})
    if reply.from_status:
        value = {"default_value": reply.from_status, "runtime_key": "edge.unused"}
        filters.append({"status_code_filter": {"comparison": {"op": "EQ", "value": value}}})
    return filters


def _all_of(filters: list[Json]) -> Json:
    return filters[0] if len(filters) == 1 else {"and_filter": {"filters": filters}}


def _mapper(reply: _Reply, matches: Json, body: Json) -> Json:
    headers = {"cache-control": "no-store", "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
    if reply.retry_after:
        headers["retry-after"] = str(reply.retry_after)
    mapper: Json = {
        "filter": matches,
        "body_format_override": body,
        "headers_to_add": [
            {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for name, value in headers.items()
        ],
    }
    if reply.status:
        mapper["status_code"] = reply.status
    return mapper


def _json(reply: _Reply) -> Json:
    body: Json = {
        "code": reply.code,
        "reason": reply.reason,
        "message": reply.message,
        # The trace's id is not known here; the access log has both.
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    if reply.retry_after:
        body["retry_after_seconds"] = reply.retry_after
    return {"json_format": body, "content_type": "application/json"}


def _page(reply: _Reply) -> Json:
    # The message's first sentence says what happened, the others what to do.
    title, _, advice = reply.message.partition(". ")
    refresh = f'<meta http-equiv="refresh" content="{reply.refresh}">' if reply.refresh else ""
    text = _PAGE.format(title=html.escape(title), message=html.escape(advice), reason=reply.reason, refresh=refresh)
    return {"text_format_source": {"inline_string": text}, "content_type": "text/html; charset=utf-8"}
