"""What an app's answer may not say to the browser, and that everything else of it passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from cellmesh.hypervisor.edge.answers import COOKIES, HOST_HEADERS, HOST_ONLY, STATUS
from cellmesh.hypervisor.edge.endpoint import Endpoint
from cellmesh.hypervisor.edge.options import Json
from support.envoy import ALICE, READY_SECONDS, EdgeUnderTest, furnish, running_edge
from support.http_client import Answer, Http2, connected, get, head, say
from support.toys import by_token, denied

pytestmark = pytest.mark.asyncio(loop_scope="module")

Fields = Sequence[tuple[str, str]]
ONLY_THE_EDGE_SAYS = (
    *((name, "forged") for name in HOST_HEADERS),
    ("Clear-Site-Data", '"*"'),
    ("STRICT-TRANSPORT-SECURITY", "max-age=31536000; includeSubDomains"),
    ("x-cellmesh-user", ALICE),
    ("X-Cellmesh-Reason", "VM_STARTING"),
    ("x-cellmesh-role", "activator"),
    ("cellmesh-kept-reason", "VM_STARTING"),
    ("x-cellmesh-anything", "forged"),
    ("x-envoy-upstream-service-time", "1"),
    ("x-envoy-immediate-health-check-fail", "1"),
)
THE_APPS_OWN = (
    ("www-authenticate", "Basic realm=app"),
    ("refresh", "5"),
    ("reporting-endpoints", 'a="https://cell.test/r"'),
    ("content-security-policy", "default-src 'self'"),
    ("access-control-allow-origin", "*"),
    ("x-forwarded-by-the-app", "yes"),
    ("cellmesh-like", "yes"),
)
DROPPED_COOKIES = (
    "__Host-sid=forged; Path=/; Secure",
    "__host-SID=forged",
    "__Secure-sid=forged; Secure",
    "  \t__Host-sid=forged",
    "__Host-sid =forged",
    "__Host-sid",
    "=__Host-sid=forged",
    " = __Secure-sid=forged",
    "__Host-Http-sid=forged",
    "cellmesh_dev_user=forged; Path=/dev",
    "CellMesh_Dev_User=forged",
    "=cellmesh_dev_user=forged",
    "cellmesh_dev_user",
)
# What an app sets, and what a browser gets of it.
KEPT_COOKIES = {
    "session=1; Path=/; HttpOnly": "session=1; Path=/; HttpOnly",
    "theme=dark; Expires=Wed, 21 Oct 2026 07:28:00 GMT": "theme=dark; Expires=Wed, 21 Oct 2026 07:28:00 GMT",
    "a=__Host-sid=1": "a=__Host-sid=1",
    "my__Host-x=1": "my__Host-x=1",
    "wide=1; Domain=cell.test; Path=/": "wide=1; Path=/",
    "wider=1;dOmAiN = .test": "wider=1",
    "empty=1; Domain; Secure": "empty=1; Secure",
    "domain=1; Secure": "domain=1; Secure",
    "b=c=d; Path=/x": "b=c=d; Path=/x",
}
_BODY = b"content-length: 2\r\n\r\nhi"


def lines(fields: Fields) -> bytes:
    """Return header lines."""
    return b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in fields)


def ok(fields: Fields) -> bytes:
    """Return an answer with these headers."""
    return b"HTTP/1.1 200 OK\r\n" + lines(fields) + _BODY


def fields_of(reply: bytes) -> list[tuple[str, str]]:
    """Return all headers of an answer as it came, in their order."""
    head_of_it = reply.split(b"\r\n\r\n", 1)[0].decode("latin-1")
    pairs = (line.partition(": ") for line in head_of_it.split("\r\n")[1:])
    return [(name.lower(), value) for name, _, value in pairs]


def cookies(set_cookies: Sequence[str]) -> Fields:
    """Return Set-Cookie headers."""
    return [("Set-Cookie", cookie) for cookie in set_cookies]


async def answered(edge: EdgeUnderTest, raw: bytes, *, headers: Fields = ()) -> bytes:
    """Return what a client gets when Alice's live app answers with these bytes."""
    edge.toys["alice-live"].raw["/raw"] = raw
    last = [] if any(name == "Upgrade" for name, _ in headers) else [("Connection", "close")]
    return await say(edge.socket, head("GET", "/raw", user=ALICE, headers=[*headers, *last]))


def without(*filters: str) -> dict[str, object]:
    """Return what runs an edge without these filters of the answers."""

    def spoil(config: Json) -> Json:
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]  # type: ignore[index]
        manager["http_filters"] = [each for each in manager["http_filters"] if each["name"] not in filters]
        router = manager["http_filters"][-1]["typed_config"]
        left = [each for each in router["upstream_http_filters"] if each["name"] not in filters]
        router["upstream_http_filters"] = left
        return config

    return {"spoil": spoil}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def open_edge() -> AsyncIterator[EdgeUnderTest]:
    """Give an edge without any of these filters: the control of each test here."""
    async with running_edge(**without(COOKIES, HOST_ONLY, STATUS)) as it:  # type: ignore[arg-type]
        await furnish(it)
        yield it


def forged(reply: bytes) -> set[str]:
    """Return the names of what only the edge says and this answer says too."""
    names = {name.lower() for name, _ in ONLY_THE_EDGE_SAYS}
    return {name for name, _ in fields_of(reply)} & names


async def test_an_answer_says_nothing_that_only_the_edge_may_say(edge: EdgeUnderTest, open_edge: EdgeUnderTest) -> None:
    """Prove that each such header is removed, in any case and twice, that others pass, and that the filter does it."""
    raw = ok([*ONLY_THE_EDGE_SAYS, *THE_APPS_OWN, *ONLY_THE_EDGE_SAYS])
    reply = await answered(edge, raw)
    assert reply.startswith(b"HTTP/1.1 200 ")
    assert forged(reply) == set()
    assert set(THE_APPS_OWN) <= set(fields_of(reply))
    assert forged(await answered(open_edge, raw)) == {name.lower() for name, _ in ONLY_THE_EDGE_SAYS}


async def test_neither_does_the_answer_to_an_upgrade(edge: EdgeUnderTest, open_edge: EdgeUnderTest) -> None:
    """Prove the same of the 101 of a WebSocket, cookies among it."""
    upgrade = [("Connection", "upgrade"), ("Upgrade", "websocket")]
    fields = [*upgrade, *ONLY_THE_EDGE_SAYS, *cookies(["__Host-sid=forged", "own=1"])]
    raw = b"HTTP/1.1 101 Switching Protocols\r\n" + lines(fields) + b"\r\nhello"
    reply = await answered(edge, raw, headers=upgrade)
    assert reply.startswith(b"HTTP/1.1 101 ")
    assert reply.endswith(b"\r\n\r\nhello")
    assert forged(reply) == set()
    assert [value for name, value in fields_of(reply) if name == "set-cookie"] == ["own=1"]
    assert b"__Host-sid" in await answered(open_edge, raw, headers=upgrade)


@pytest.mark.parametrize("status", [100, 102, 103, 199])
async def test_nothing_is_said_before_an_answer(edge: EdgeUnderTest, status: int) -> None:
    """Prove that no informational answer of an app reaches a client, and that its final answer does."""
    early = lines([*ONLY_THE_EDGE_SAYS, *cookies(["__Host-sid=forged"]), ("link", "</a>")])
    reply = await answered(edge, b"HTTP/1.1 %d Early\r\n%s\r\n%s" % (status, early, ok(())))
    assert reply.startswith(b"HTTP/1.1 200 ")
    assert reply.count(b"HTTP/1.1") == 1
    assert b"forged" not in reply


async def test_nothing_is_said_after_an_answer(edge: EdgeUnderTest) -> None:
    """Prove that trailers carry no such header and no cookie, in HTTP/1.1 and HTTP/2."""
    trailers = lines([*ONLY_THE_EDGE_SAYS, *cookies(["__Host-sid=forged", "own=forged"])])
    raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n%s\r\n" % trailers
    reply = await answered(edge, raw, headers=[("TE", "trailers")])
    assert reply.startswith(b"HTTP/1.1 200 ")
    assert b"forged" not in reply
    async with connected(edge.socket) as (reader, writer):
        client = Http2(reader, writer)
        stream = client.ask("/raw", user=ALICE, more={"te": "trailers"})
        client.flush()
        while stream not in client.trailers and stream not in client.finished:
            assert await client.hear()
    assert not {name.lower() for name, _ in ONLY_THE_EDGE_SAYS} & set(client.trailers.get(stream, {}))
    assert "set-cookie" not in client.trailers.get(stream, {})


async def test_an_app_sets_its_own_cookies_and_no_others(edge: EdgeUnderTest, open_edge: EdgeUnderTest) -> None:
    """Prove of many spellings, all in one answer, which cookies pass, and that none is wider than the host."""
    every = [*DROPPED_COOKIES, *KEPT_COOKIES, *DROPPED_COOKIES]
    got = [value for name, value in fields_of(await answered(edge, ok(cookies(every)))) if name == "set-cookie"]
    assert got == list(KEPT_COOKIES.values())
    control = fields_of(await answered(open_edge, ok(cookies(every))))
    assert len([name for name, _ in control if name == "set-cookie"]) == len(every)


@pytest.mark.parametrize("cookie", DROPPED_COOKIES)
async def test_a_reserved_cookie_alone_leaves_no_header(edge: EdgeUnderTest, cookie: str) -> None:
    """Prove of each spelling that nothing of it is left."""
    reply = await answered(edge, ok(cookies([cookie])))
    assert reply.startswith(b"HTTP/1.1 200 ")
    assert b"set-cookie" not in reply.lower()


@pytest.mark.parametrize("status", ["000", "042", "099", "600", "999", "1000", "-20", "abc"])
async def test_a_status_that_does_not_exist_is_a_502(edge: EdgeUnderTest, status: str) -> None:
    """Prove it of statuses below and above what HTTP has, and that nothing else of that answer passes."""
    raw = b"HTTP/1.1 %s Strange\r\nx-app: yes\r\n%s" % (status.encode(), _BODY)
    for accept, expected in (("application/json", b'"reason":"CONTAINER_'), ("text/html", b"CONTAINER_")):
        reply = await answered(edge, raw, headers=[("Accept", accept)])
        assert reply.startswith(b"HTTP/1.1 502 "), reply
        assert b"x-app" not in reply
        assert expected in reply


@pytest.mark.parametrize(("count", "status"), [(120, 200), (250, 200), (300, 502)])
async def test_an_answer_may_have_many_headers(edge: EdgeUnderTest, count: int, status: int) -> None:
    """Prove that 250 cookies pass, each of them, and that more is told as what it is."""
    reply = await answered(edge, ok(cookies([f"c{number}=1" for number in range(count)])))
    assert reply.startswith(b"HTTP/1.1 %d " % status)
    if status == 200:
        assert reply.lower().count(b"set-cookie: c") == count
    else:
        assert b"CONTAINER_ANSWER_INVALID" in reply


async def test_without_its_filter_a_status_that_does_not_exist_passes(open_edge: EdgeUnderTest) -> None:
    """Prove that the test before can fail."""
    assert (await answered(open_edge, b"HTTP/1.1 999 Strange\r\n" + _BODY)).startswith(b"HTTP/1.1 999 ")


@pytest.mark.parametrize("status", [200, 204, 304, 404, 451, 500, 502, 503, 599])
async def test_a_status_that_exists_passes(edge: EdgeUnderTest, status: int) -> None:
    """Prove that an app's own failures are not rewritten."""
    body = b"\r\n" if status in {204, 304} else _BODY
    reply = await answered(edge, b"HTTP/1.1 %d Own\r\nx-app: yes\r\n%s" % (status, body))
    assert reply.startswith(b"HTTP/1.1 %d " % status)
    assert ("x-app", "yes") in fields_of(reply)


async def test_the_authorizer_and_the_edge_say_what_an_app_may_not(edge: EdgeUnderTest) -> None:
    """Prove that the authorizer's cookies and headers pass, whatever their names."""
    edge.authorizer.answer = lambda _: denied(302, "", location="/", set_cookie="__Host-sid=1; Secure; Path=/")
    try:
        got: Answer = await get(edge.socket, "/sign-in")
    finally:
        edge.authorizer.answer = by_token
    assert (got.status, got.headers["set-cookie"]) == (302, "__Host-sid=1; Secure; Path=/")


async def test_the_activator_says_its_reason(edge: EdgeUnderTest) -> None:
    """Prove that the reason passes from the activator's endpoint, and cookies and other such headers do not."""
    toy = await edge.toy("activator")
    activator = {f"{ALICE}/_waits": Endpoint(path=toy.path)}
    await edge.discovery.served(f"{ALICE}/_waits", edge.discovery.put(activator), timeout=READY_SECONDS)
    fields = [("x-cellmesh-reason", "VM_STARTING"), ("x-cellmesh-other", "1"), *cookies(["__Host-sid=forged"])]
    toy.raw["/"] = ok(fields)
    got = await get(edge.socket, "/_/waits/", user=ALICE)
    assert got.headers["x-cellmesh-reason"] == "VM_STARTING"
    assert not {"x-cellmesh-other", "x-cellmesh-role", "cellmesh-kept-reason", "set-cookie"} & set(got.headers)


async def test_many_answers_at_once_keep_their_own_cookies(edge: EdgeUnderTest) -> None:
    """Prove that the script of the cookies keeps nothing from one answer for the next."""
    toy = edge.toys["alice-live"]
    for number in range(40):
        # Its connection ends behind it; without that word the next request could be sent on it.
        toy.raw[f"/c{number}"] = ok([*cookies([f"own={number}", "__Host-sid=forged"]), ("connection", "close")])
    replies = await asyncio.gather(*(get(edge.socket, f"/c{number}", user=ALICE) for number in range(40)))
    assert [reply.headers["set-cookie"] for reply in replies] == [f"own={number}" for number in range(40)]
