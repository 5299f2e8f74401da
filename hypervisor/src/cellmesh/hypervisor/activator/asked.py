"""What the edge says of a request: who asks, for which route, and in whose trace."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

# Set by the edge, which takes a client's own away.
USER_HEADER = "x-cellmesh-user"
PREFIX_HEADER = "x-forwarded-prefix"

_USER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PREFIX = re.compile(r"/dev|/_/[a-z][a-z0-9-]{0,31}")
_REQUEST_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_PAGE = "text/html"


class NotFromEdge(ValueError):
    """A request does not say, or says twice, what the edge says of every request."""


class Headers(Protocol):
    """Header fields, names in any case."""

    def getall(self, name: str, default: Iterable[str]) -> Iterable[str]:
        """Return every value of a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteKey:
    """Which route of whom."""

    user_id: str
    """Who asks, as the authorizer said."""
    prefix: str
    """`/`, `/dev/` or `/_/<name>/`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, as far as it decides the answer."""

    route: RouteKey
    """Which route it came by."""
    by_browser: bool
    """True if a person will look at the answer."""
    request_id: str
    """The edge's own id of the request; empty if it gave none."""
    traceparent: str
    """The trace it is part of, in W3C form; empty if the edge named none."""


def is_the_edges(headers: Headers) -> bool:
    """Tell whether a request came through the edge; what did not is a look at our own health."""
    return any(True for _ in headers.getall(USER_HEADER, ()))


def read(method: str, headers: Headers) -> Asked:
    """Return what the edge says of a request. Raises NotFromEdge."""
    user = _one(headers, USER_HEADER)
    prefix = _one(headers, PREFIX_HEADER)
    if not _USER.fullmatch(user):
        raise NotFromEdge(f"{USER_HEADER} is not one user's id")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise NotFromEdge(f"{PREFIX_HEADER} is not a route's prefix")
    request_id = _one(headers, "x-request-id")
    return Asked(
        route=RouteKey(user_id=user, prefix=f"{prefix}/"),
        by_browser=_by_browser(method, headers),
        request_id=request_id if _REQUEST_ID.fullmatch(request_id) else "",
        traceparent=_traceparent(headers, request_id),
    )


def _one(headers: Headers, name: str) -> str:
    """Return the value of a header, empty if it is not there. Raises NotFromEdge for more than one."""
    values = tuple(headers.getall(name, ()))
    if len(values) > 1:
        raise NotFromEdge(f"{name} is there {len(values)} times")
    return values[0] if values else ""


def _by_browser(method: str, headers: Headers) -> bool:
    """Tell whether a browser goes to a page; what its scripts ask for is a program's question."""
    if method != "GET" or any(True for _ in headers.getall("upgrade", ())):
        return False
    modes = tuple(headers.getall("sec-fetch-mode", ()))
    if modes and modes != ("navigate",):
        return False
    return _accepts_page(",".join(headers.getall("accept", ())))


def _accepts_page(accept: str) -> bool:
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        if kind == _PAGE:
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


def _traceparent(headers: Headers, request_id: str) -> str:
    """Return the edge's trace; without one, one whose id is that of the request."""
    given = tuple(headers.getall("traceparent", ()))
    if len(given) == 1 and _TRACEPARENT.fullmatch(given[0]):
        return given[0]
    made = f"00-{request_id.replace('-', '')}-{secrets.token_hex(8)}-00"
    return made if _TRACEPARENT.fullmatch(made) else ""
