"""Who asks, and whether they may: strict about how it is said, credulous about what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

USER_HEADER = "x-cellmesh-user"
COOKIE = "cellmesh_dev_user"
SIGN_IN = "/.cellmesh/sign-in"

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_USER = re.compile(_UUID)
_BEARER = re.compile(rf"(?i:bearer) dev-({_UUID})")
# Any text like a token of this authenticator, wherever it stands: no app gets one.
_OURS = re.compile(r"(?i)bearer\s+dev-")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_SESSION_SECONDS = 24 * 3600
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the edge shows of a request."""

    method: str
    """Method."""
    path: str
    """Path with the query."""
    host: str = ""
    """Host the client named."""
    scheme: str = ""
    """`http` or `https`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers, names in lower case; what came several times is joined with commas."""

    @property
    def by_browser(self) -> bool:
        """Tell whether a person will look at the answer."""
        return self.method == "GET" and "text/html" in self.headers.get("accept", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """The request passes; what proves who asks is taken out of it."""

    user_id: str
    """Who asks."""
    cookie: str | None = None
    """What is left of the cookies; None if there were none or none are left."""
    removed: tuple[str, ...] = ()
    """Headers to take away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The request is answered here."""

    status: HTTPStatus
    """Status of the answer."""
    reason: str
    """Machine-readable reason."""
    message: str
    """What happened and what to do."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of the answer."""


Decision = Allowed | Refused


def decide(request: Request, users: frozenset[str] = frozenset()) -> Decision:
    """Decide about a request; only `users` may sign in, unless there are none of them: then every user id may."""
    for name in ("cookie", "authorization"):
        if not _PRINTABLE.fullmatch(request.headers.get(name, "")):
            return _bad(f"The header {name} has characters that no header may have. Send printable ASCII.")
    # As it stands: a URL's parser takes the beginning of `//host/...` for a host.
    path, _, query = request.path.partition("?")
    if path == SIGN_IN:
        return _sign_in(request, query, users)
    said = _who(request)
    if isinstance(said, Refused):
        return said
    return _allowed(said.user_id, users) or said


def _sign_in(request: Request, query: str, users: frozenset[str]) -> Refused:
    if request.method != "GET":
        return Refused(
            status=HTTPStatus.METHOD_NOT_ALLOWED,
            reason="METHOD_NOT_ALLOWED",
            message="Signing in takes a GET.",
            headers={"allow": "GET"},
        )
    fields = parse_qsl(query, keep_blank_values=True)
    if [name for name, _ in fields] != ["user"] or not _USER.fullmatch(fields[0][1]):
        return _bad(f"Signing in takes one user id: {SIGN_IN}?user=<uuid in lower case>.")
    user_id = fields[0][1]
    if (refused := _allowed(user_id, users)) is not None:
        return refused
    secure = "; Secure" if request.scheme == "https" else ""
    cookie = f"{COOKIE}={user_id}; Path=/; Max-Age={_SESSION_SECONDS}; HttpOnly; SameSite=Lax{secure}"
    return Refused(
        status=HTTPStatus.FOUND,
        reason="SIGNED_IN",
        message="You are signed in.",
        headers={"location": "/", "set-cookie": cookie},
    )


def _who(request: Request) -> Decision:
    """Return who asks, proven in exactly one way."""
    cookies = request.headers.get("cookie", "")
    # As often as it is named at all: in several headers, twice in one, in other letters, inside of another cookie.
    sessions = cookies.lower().count(COOKIE)
    authorization = request.headers.get("authorization")
    # Any other authorization is the app's own: it is no proof here, and it passes as it came.
    token = authorization is not None and (_OURS.search(authorization) is not None or not sessions)
    if sessions + token > 1:
        return _bad("The request says more than once who asks. Send one session cookie, or one authorization header.")
    if authorization is not None and token:
        return _by_bearer(authorization)
    if not sessions:
        return _unauthenticated("Nobody is signed in.")
    return _by_cookie(request, cookies)


def _by_bearer(authorization: str) -> Decision:
    if "," in authorization:
        return _bad("There are several authorization headers. Send one.")
    match = _BEARER.fullmatch(authorization)
    if match is None:
        return _unauthenticated("This way to sign in is not known here.")
    return Allowed(user_id=match[1], removed=("authorization",))


def _by_cookie(request: Request, cookies: str) -> Decision:
    others: list[str] = []
    user_id = ""
    for pair in cookies.split(";"):
        name, _, value = pair.strip(" ").partition("=")
        if name == COOKIE and _USER.fullmatch(value):
            user_id = value
        elif pair.strip(" "):
            others.append(pair.strip(" "))
    if not user_id:
        return _bad("The session cookie is not one of ours. Remove it and sign in again.")
    if _is_forged(request):
        return Refused(
            status=HTTPStatus.FORBIDDEN,
            reason="CROSS_ORIGIN",
            message="Another site sent this request in your name. Only pages of this host may.",
        )
    cookie = "; ".join(others)
    return Allowed(user_id=user_id, cookie=cookie or None, removed=() if cookie else ("cookie",))


def _is_forged(request: Request) -> bool:
    """Tell whether a page of another origin uses the cookie of a user who knows nothing of it."""
    origin = request.headers.get("origin")
    if origin is None or (request.method in _SAFE and "upgrade" not in request.headers):
        return False
    return urlsplit(origin).netloc.lower() != request.host.lower()


def _allowed(user_id: str, users: frozenset[str]) -> Refused | None:
    """Refuse who is not among the users."""
    if not users or user_id in users:
        return None
    return Refused(
        status=HTTPStatus.FORBIDDEN,
        reason="USER_NOT_ALLOWED",
        message="This user may not sign in here. Start the authenticator with --user to allow more.",
    )


def _bad(message: str) -> Refused:
    return Refused(status=HTTPStatus.BAD_REQUEST, reason="BAD_CREDENTIALS", message=message)


def _unauthenticated(what: str) -> Refused:
    return Refused(
        status=HTTPStatus.UNAUTHORIZED,
        reason="NOT_SIGNED_IN",
        message=f"{what} For development: open {SIGN_IN}?user=<uuid>, or send authorization: Bearer dev-<uuid>.",
        headers={"www-authenticate": 'Bearer realm="cellmesh development"'},
    )
