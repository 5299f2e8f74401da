"""The development authenticator is told who asks in exactly one way, or it refuses."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import pytest

from cellmesh.hypervisor.edge import routes
from dev_authenticator.decision import COOKIE, SIGN_IN, USER_HEADER, Allowed, Refused, Request, decide

USER = "00000000-0000-4000-8000-00000000000a"
OTHER = "00000000-0000-4000-8000-00000000000b"
SESSION = f"{COOKIE}={USER}"
BEARER = f"Bearer dev-{USER}"


def _request(**fields: Any) -> Request:
    headers = fields.pop("headers", {})
    return Request(**{"method": "GET", "path": "/", "host": "cell.test", "scheme": "https", **fields}, headers=headers)


def _refused(request: Request, users: frozenset[str] = frozenset()) -> Refused:
    decision = decide(request, users)
    assert isinstance(decision, Refused)
    return decision


def test_header_is_the_one_the_edge_routes_by() -> None:
    """Who was found out is told under the name that Envoy reads."""
    assert USER_HEADER == routes.USER_HEADER


def test_session_says_who_asks_and_does_not_reach_the_app() -> None:
    """The only cookie is taken away with its header."""
    assert decide(_request(headers={"cookie": SESSION})) == Allowed(user_id=USER, removed=("cookie",))


@pytest.mark.parametrize(
    ("cookies", "left"),
    [
        (f"a=1; {SESSION}; b=2", "a=1; b=2"),
        (f"{SESSION};a=1", "a=1"),
        (f"a=1;;  {SESSION} ; ", "a=1"),
        (f"{SESSION}; odd; e=; =x", "odd; e=; =x"),
    ],
)
def test_cookies_of_the_app_stay(cookies: str, left: str) -> None:
    """What the app keeps in the browser goes on to it, the session does not."""
    assert decide(_request(headers={"cookie": cookies})) == Allowed(user_id=USER, cookie=left)


def test_bearer_says_who_asks_and_does_not_reach_the_app() -> None:
    """A program says it in a header, which is taken away; the app's cookies are not looked at."""
    for authorization in (BEARER, BEARER.replace("Bearer", "bearer")):
        decision = decide(_request(headers={"authorization": authorization, "cookie": "a=1"}))
        assert decision == Allowed(user_id=USER, removed=("authorization",))


@pytest.mark.parametrize(
    "authorization",
    ["Basic eA==", "Bearer the-apps-own", f"Bearer {USER}", 'Digest username="a", realm="b"', "odd", ""],
)
def test_authorization_of_the_app_passes_beside_a_session(authorization: str) -> None:
    """The session says who asks and is taken away; a header that is no token of the authenticator's stays."""
    headers = {"cookie": SESSION, "authorization": authorization}
    assert decide(_request(headers=headers)) == Allowed(user_id=USER, removed=("cookie",))


@pytest.mark.parametrize(
    "headers",
    [
        {"cookie": f"{SESSION}; {SESSION}"},
        {"cookie": f"{SESSION}; {COOKIE}={OTHER}"},
        {"cookie": f"{SESSION},{SESSION}"},
        {"cookie": f"{SESSION},{COOKIE}={OTHER}"},
        {"cookie": f"{SESSION}; {COOKIE.upper()}={OTHER}"},
        {"cookie": f"{SESSION}; {COOKIE} ={OTHER}"},
        {"cookie": f"{SESSION}; a={COOKIE}"},
        {"cookie": f"{COOKIE.upper()}={USER}"},
        {"cookie": f"{COOKIE} ={USER}"},
        {"cookie": f"{COOKIE}= {USER}"},
        {"cookie": f'{COOKIE}="{USER}"'},
        {"cookie": f"{COOKIE}={USER.upper()}"},
        {"cookie": f"{COOKIE}={USER},a=1"},
        {"cookie": f"a=1,{SESSION}"},
        {"cookie": f"x{SESSION}"},
        {"cookie": f"{COOKIE}="},
        {"cookie": COOKIE},
        {"cookie": f"{COOKIE}={USER}\n"},
        {"cookie": f"{SESSION}; a=\x00"},
        {"cookie": f"{SESSION}; a=\u00e9"},
        {"authorization": f"{BEARER},{BEARER}"},
        {"authorization": f"{BEARER}, Basic eA=="},
        {"authorization": f"{BEARER}\r\nx-cellmesh-user: {OTHER}"},
        {"cookie": SESSION, "authorization": BEARER},
        {"cookie": SESSION, "authorization": f"Bearer app, {BEARER}"},
        {"cookie": SESSION, "authorization": "bearer  DEV-malformed"},
    ],
    ids=repr,
)
def test_doubt_is_a_bad_request(headers: dict[str, str]) -> None:
    """Two sessions in whatever form, a malformed one, two ways at once: 400, and never anybody's."""
    assert _refused(_request(headers=headers)).status == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"cookie": ""},
        {"cookie": "a=1; sid=2"},
        {"authorization": ""},
        {"authorization": "Basic eA=="},
        {"authorization": f"Bearer {USER}"},
        {"authorization": f"Bearer dev-{USER.upper()}"},
        {"authorization": f"Bearer dev-{USER} "},
        {"authorization": f"Bearer  dev-{USER}"},
        {"authorization": "Bearer dev-"},
        {USER_HEADER: USER},
    ],
    ids=repr,
)
def test_nobody_is_let_in_unsaid(headers: dict[str, str]) -> None:
    """Without a session, or with a way to sign in that is not known: 401, which says how to sign in."""
    refused = _refused(_request(headers=headers))
    assert refused.status == HTTPStatus.UNAUTHORIZED
    assert SIGN_IN in refused.message
    assert refused.headers["www-authenticate"].startswith("Bearer ")


@pytest.mark.parametrize(("scheme", "end"), [("https", "SameSite=Lax; Secure"), ("http", "SameSite=Lax")])
def test_signing_in_gives_this_host_a_session(scheme: str, end: str) -> None:
    """The cookie is for this host alone, not for scripts, not for other sites, and over TLS only where there is any."""
    refused = _refused(_request(path=f"{SIGN_IN}?user={USER}", scheme=scheme))
    assert (refused.status, refused.headers["location"]) == (HTTPStatus.FOUND, "/")
    cookie = refused.headers["set-cookie"]
    assert cookie.startswith(f"{SESSION}; Path=/; ")
    assert "; HttpOnly; " in cookie
    assert cookie.endswith(end)
    assert "domain" not in cookie.lower()


@pytest.mark.parametrize(
    "query",
    [
        "",
        "user=",
        f"user={USER.upper()}",
        f"user={USER}&user={USER}",
        f"user={USER}&next=https://evil.test",
        f"User={USER}",
        f"user={USER}%0d%0aset-cookie:%20a=1",
        f"user={USER};",
    ],
)
def test_signing_in_takes_one_user_and_nothing_else(query: str) -> None:
    """No malformed id, no second one, no place to be sent to."""
    refused = _refused(_request(path=f"{SIGN_IN}?{query}", headers={"cookie": SESSION}))
    assert refused.status == HTTPStatus.BAD_REQUEST
    assert "set-cookie" not in refused.headers


@pytest.mark.parametrize("method", ["HEAD", "POST", "OPTIONS"])
def test_signing_in_is_a_get(method: str) -> None:
    """Another method gives no session."""
    refused = _refused(_request(method=method, path=f"{SIGN_IN}?user={USER}"))
    assert (refused.status, refused.headers) == (HTTPStatus.METHOD_NOT_ALLOWED, {"allow": "GET"})


def test_paths_beside_it_sign_nobody_in() -> None:
    """Only that path does, to the letter."""
    for path in (f"{SIGN_IN}/", f"{SIGN_IN}x", f"//{SIGN_IN}", f"//a{SIGN_IN}", f"/dev{SIGN_IN}", SIGN_IN.upper()):
        assert _refused(_request(path=f"{path}?user={USER}")).status == HTTPStatus.UNAUTHORIZED


def test_only_who_is_named_may_sign_in() -> None:
    """With a list of users everybody else is refused, whichever way they say it, and gets no session."""
    users = frozenset({USER})
    assert isinstance(decide(_request(headers={"cookie": SESSION}), users), Allowed)
    for request in (
        _request(headers={"cookie": f"{COOKIE}={OTHER}"}),
        _request(headers={"authorization": f"Bearer dev-{OTHER}"}),
        _request(path=f"{SIGN_IN}?user={OTHER}"),
    ):
        refused = _refused(request, users)
        assert (refused.status, refused.reason) == (HTTPStatus.FORBIDDEN, "USER_NOT_ALLOWED")
        assert "set-cookie" not in refused.headers


@pytest.mark.parametrize(
    ("method", "more", "forged"),
    [
        ("POST", {"origin": "https://evil.test"}, True),
        ("DELETE", {"origin": "null"}, True),
        ("POST", {"origin": "https://cell.test.evil.test"}, True),
        ("POST", {"origin": "https://cell.test:444"}, True),
        ("GET", {"origin": "https://evil.test", "upgrade": "websocket"}, True),
        ("POST", {"origin": "https://cell.test"}, False),
        ("POST", {"origin": "https://CELL.test"}, False),
        ("POST", {}, False),
        ("GET", {"origin": "https://evil.test"}, False),
        ("GET", {"origin": "https://cell.test", "upgrade": "websocket"}, False),
    ],
)
def test_another_site_does_not_act_in_a_users_name(method: str, more: dict[str, str], *, forged: bool) -> None:
    """A session is not for pages of another origin; they may link, but neither send nor open sockets."""
    decision = decide(_request(method=method, headers={"cookie": SESSION, **more}))
    assert isinstance(decision, Refused) is forged
    if isinstance(decision, Refused):
        assert (decision.status, decision.reason) == (HTTPStatus.FORBIDDEN, "CROSS_ORIGIN")
    assert isinstance(decide(_request(method=method, headers={"authorization": BEARER, **more})), Allowed)
