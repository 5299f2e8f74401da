"""Envoy's question and its answer, in Envoy's messages."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from google.rpc import code_pb2, status_pb2  # type: ignore[import-untyped]  # no stubs for these two

from cellmesh.envoy.auth.v3 import external_auth_pb2 as messages
from cellmesh.envoy.auth.v3 import external_auth_pb2_grpc
from dev_authenticator.decision import USER_HEADER, Allowed, Refused, Request, decide

_REPLACE = 2
_CODES = {
    HTTPStatus.FOUND: code_pb2.UNAUTHENTICATED,
    HTTPStatus.UNAUTHORIZED: code_pb2.UNAUTHENTICATED,
    HTTPStatus.BAD_REQUEST: code_pb2.INVALID_ARGUMENT,
    HTTPStatus.METHOD_NOT_ALLOWED: code_pb2.INVALID_ARGUMENT,
    HTTPStatus.FORBIDDEN: code_pb2.PERMISSION_DENIED,
}
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<h1>{title}</h1>
<p>{message}</p>
<p><code>{reason}</code></p>
</html>
"""


class DevAuthenticator(external_auth_pb2_grpc.AuthorizationServicer):
    """Answers what the edge asks about each request."""

    def __init__(self, users: frozenset[str] = frozenset()) -> None:
        self._users = users

    async def Check(self, request: messages.CheckRequest, context: Any) -> messages.CheckResponse:  # noqa: ARG002
        """Decide about one request."""
        http = request.attributes.request.http
        asked = Request(
            method=http.method, path=http.path, host=http.host, scheme=http.scheme, headers=dict(http.headers)
        )
        decision = decide(asked, self._users)
        if isinstance(decision, Allowed):
            return _ok(decision)
        return _denied(decision, by_browser=asked.by_browser)


def _ok(allowed: Allowed) -> messages.CheckResponse:
    headers = {USER_HEADER: allowed.user_id}
    if allowed.cookie is not None:
        headers["cookie"] = allowed.cookie
    return messages.CheckResponse(
        status=status_pb2.Status(code=code_pb2.OK),
        ok_response=messages.OkHttpResponse(headers=_headers(headers), headers_to_remove=allowed.removed),
    )


def _denied(refused: Refused, *, by_browser: bool) -> messages.CheckResponse:
    # The document's title is the first sentence, what happened; the rest says what to do.
    if by_browser:
        title, _, advice = refused.message.partition(". ")
        body = _PAGE.format(title=html.escape(title), message=html.escape(advice), reason=refused.reason)
        kind = {
            "content-type": "text/html; charset=utf-8",
            "content-security-policy": "default-src 'none'; frame-ancestors 'self'",
        }
    else:
        code = code_pb2.Code.Name(_CODES[refused.status])
        body = json.dumps({"code": code, "reason": refused.reason, "message": refused.message}) + "\n"
        kind = {"content-type": "application/json"}
    headers = {**kind, "cache-control": "no-store", **refused.headers}
    return messages.CheckResponse(
        status=status_pb2.Status(code=_CODES[refused.status], message=refused.reason),
        denied_response=messages.DeniedHttpResponse(
            status=messages.HttpStatus(code=refused.status), headers=_headers(headers), body=body
        ),
    )


def _headers(headers: Mapping[str, str]) -> list[messages.HeaderValueOption]:
    return [
        messages.HeaderValueOption(header=messages.HeaderValue(key=key, value=value), append_action=_REPLACE)
        for key, value in headers.items()
    ]
