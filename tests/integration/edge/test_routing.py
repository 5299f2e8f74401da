"""Which container answers at which path, and what it is told (drills 19, 20, 21 and 38)."""

from __future__ import annotations

import pytest

from support.envoy import ALICE, BOB, EdgeUnderTest, furnish, running_edge
from support.http_client import get

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Path asked for; who answers, and at which path. Everything not named here is refused.
SPECIFIED = {
    "/": ("alice-live", "/"),
    "/x/y?q=1": ("alice-live", "/x/y?q=1"),
    "/dev": ("alice-dev", "/"),
    "/dev?q=1": ("alice-dev", "/?q=1"),
    "/dev/": ("alice-dev", "/"),
    "/dev/x?q=1": ("alice-dev", "/x?q=1"),
    "/_/notes": ("alice-notes", "/"),
    "/_/notes/": ("alice-notes", "/"),
    "/_/notes/x/y?q=1": ("alice-notes", "/x/y?q=1"),
    # As they are when dots, slashes and escapes are taken out.
    "/%64ev/x": ("alice-dev", "/x"),
    "//dev/x": ("alice-dev", "/x"),
    "///dev": ("alice-dev", "/"),
    "//_//notes/x?q=1": ("alice-notes", "/x?q=1"),
    # Slashes in an app's own part of the path are its own.
    "//dev//x": ("alice-dev", "//x"),
    "/a%2Fb": ("alice-live", "/a%2Fb"),
    "/a%2fb%5cc//d": ("alice-live", "/a%2fb%5cc//d"),
    "/dev/@scope%2Fname?q=%2F": ("alice-dev", "/@scope%2Fname?q=%2F"),
    "/_/notes/p/http://x.test/y": ("alice-notes", "/p/http://x.test/y"),
    "/_/notes/a%2Fdev%2Fb": ("alice-notes", "/a%2Fdev%2Fb"),
    "/x%2fdev/y": ("alice-live", "/x%2fdev/y"),
    "//x//dev/y": ("alice-live", "//x//dev/y"),
    "/%252fdev/y": ("alice-live", "/%252fdev/y"),
    "/dev/../x": ("alice-live", "/x"),
    "/x/../dev/y": ("alice-dev", "/y"),
    "/x/%2e%2e/dev/y": ("alice-dev", "/y"),
    "/./dev/x": ("alice-dev", "/x"),
    "/x\\..\\dev\\y": ("alice-dev", "/y"),
    "/dev/..;/x": ("alice-live", "/x"),
    "/_/notes/../../dev/x": ("alice-dev", "/x"),
    # Other names are the live app's own.
    "/DEV/x": ("alice-live", "/DEV/x"),
    "/Dev": ("alice-live", "/Dev"),
    "/development": ("alice-live", "/development"),
    "/dev.html": ("alice-live", "/dev.html"),
    "/devx/../x": ("alice-live", "/x"),
    "/_next/x": ("alice-live", "/_next/x"),
    "/x;v=1/y": ("alice-live", "/x;v=1/y"),
    "/dev/x;v=1": ("alice-dev", "/x;v=1"),
}
REFUSED = {
    "/dev;/x": 400,
    "/dev;x=y": 400,
    "/DEV;/x": 400,
    "/_;/notes": 400,
    "/_/notes;x/y": 400,
    "/dev%2fx": 400,
    "/dev%2Fx": 400,
    "/dev%5cx": 400,
    "/dev/%2e%2e%2fx": 400,
    "/dev%2F..": 400,
    "/dev%2F../x": 400,
    "//dev%2fx": 400,
    "/%2fdev/x": 400,
    "/%5cdev": 400,
    "/%2f%2F_/notes/x": 400,
    "/_%2fnotes/x": 400,
    "/_/notes%2fx": 400,
    "/_/%2fnotes/x": 400,
    "/_/notes/..%2f..%2fdev/x": 400,
    "/x%2f../dev%2fy": 400,
    "/x%2f..": 400,
    "/x%5c..;/dev": 400,
    "/.cellmesh%2fsign-in": 400,
    "//dev;/x": 400,
    "//_//notes;x": 400,
    "//_/": 404,
    "//.cellmesh/sign-in": 404,
    "/_/": 404,
    "/_": 404,
    "/_/unknown/": 404,
    "/_/../_/unknown": 404,
    "/_/Notes/": 404,
    "/_/live/": 404,
    "/_/_notes/": 404,
    "/.cellmesh/anything": 404,
}
FORGED = (
    ("x-cellmesh-user", BOB),
    ("x-cellmesh-route", f"{BOB}/live"),
    ("X-Cellmesh-Anything", "evil"),
    ("X-Forwarded-For", "6.6.6.6"),
    ("x-forwarded-proto", "evil"),
    ("x-forwarded-host", "evil.test"),
    ("x-forwarded-prefix", "/evil"),
    ("x-envoy-original-path", "/evil"),
    ("x-envoy-decorator-operation", "evil"),
    ("x-envoy-external-address", "6.6.6.6"),
    ("x-envoy-upstream-rq-timeout-ms", "1"),
    ("x-envoy-retry-on", "5xx"),
    ("x-original-url", "/evil"),
    ("x-rewrite-url", "/evil"),
    ("x-real-ip", "6.6.6.6"),
    ("Forwarded", "for=6.6.6.6"),
    ("x-request-id", "evil"),
    ("x-client-trace-id", "evil"),
    ("traceparent", "00-66666666666666666666666666666666-6666666666666666-01"),
    ("tracestate", "evil=1"),
    ("baggage", "evil=1"),
    ("b3", "evil"),
    ("x-b3-traceid", "66666666666666666666666666666666"),
)


@pytest.mark.parametrize("path", SPECIFIED)
async def test_a_path_leads_where_it_is_specified_to(edge: EdgeUnderTest, path: str) -> None:
    """Prove of each spelling which container answers and which path it sees."""
    answer = await get(edge.socket, path, user=ALICE)
    assert (answer.json()["toy"], answer.json()["line"].split(" ")[1]) == SPECIFIED[path]


@pytest.mark.parametrize("path", SPECIFIED)
async def test_the_authorizer_is_shown_the_path_that_the_app_gets(edge: EdgeUnderTest, path: str) -> None:
    """Prove that both see one spelling: the authorizer's ends with the app's, before which the slot is named."""
    await get(edge.socket, path, user=ALICE)
    shown, (name, got) = edge.authorizer.seen[-1].attributes.request.http.path, SPECIFIED[path]
    slot = {"alice-live": "", "alice-dev": "/dev", "alice-notes": "/_/notes"}[name]
    assert shown.endswith(got.removeprefix("/") if slot else got)
    assert shown.replace("//_//", "/_/").lstrip("/").startswith(slot.lstrip("/"))


@pytest.mark.parametrize("path", REFUSED)
async def test_a_path_that_leads_nowhere_reaches_nobody(edge: EdgeUnderTest, path: str) -> None:
    """Prove of each spelling that might be taken for a prefix that it is refused."""
    before = sum(toy.heads for toy in edge.toys.values())
    answer = await get(edge.socket, path, user=ALICE)
    assert answer.status == REFUSED[path]
    assert sum(toy.heads for toy in edge.toys.values()) == before


async def test_without_normalisation_live_and_dev_are_confused() -> None:
    """Prove that the tables can fail: paths that are not normalised lead elsewhere."""

    def spoil(config: dict) -> dict:
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        manager["normalize_path"] = False
        host = manager["route_config"]["virtual_hosts"][0]
        host["routes"] = [route for route in host["routes"] if route["name"] != "refused"]
        return config

    async with running_edge(spoil=spoil) as spoilt:
        await furnish(spoilt)
        led = {path: (await get(spoilt.socket, path, user=ALICE)).json()["toy"] for path in ("/dev/../x", "/dev%2fx")}
    assert led == {"/dev/../x": "alice-dev", "/dev%2fx": "alice-live"}


async def test_each_user_reaches_their_own_cell(edge: EdgeUnderTest) -> None:
    """Prove that the same path leads to the container of who asks."""
    for user, toy in ((ALICE, "alice-live"), (BOB, "bob-live")):
        assert (await get(edge.socket, "/", user=user)).json()["toy"] == toy
    assert (await get(edge.socket, "/dev/", user=BOB)).status == 503
    assert (await get(edge.socket, "/_/notes/", user=BOB)).status == 404


async def test_an_app_is_told_what_was_taken_off_its_path(edge: EdgeUnderTest) -> None:
    """Prove that x-forwarded-prefix is there for dev and sidecars, and nowhere else."""
    for path, prefix in {"/x": [], "/dev/x": ["/dev"], "/dev": ["/dev"], "/_/notes/x": ["/_/notes"]}.items():
        answer = await get(edge.socket, path, user=ALICE, headers=[("x-forwarded-prefix", "/evil")])
        assert answer.header_of_request("x-forwarded-prefix") == prefix


async def test_nothing_a_client_says_of_itself_is_believed(edge: EdgeUnderTest) -> None:
    """Prove that forged headers reach neither the authorizer nor the app, in any case and twice, and change nothing."""
    edge.authorizer.seen.clear()
    answer = await get(edge.socket, "/", user=ALICE, headers=[*FORGED, *FORGED])
    assert answer.json()["toy"] == "alice-live"
    assert answer.header_of_request("x-cellmesh-user") == [ALICE]
    asked = edge.authorizer.seen[-1].attributes.request.http
    forged = {value for _, value in FORGED}
    assert not forged & {*asked.headers.values(), *(value for _, value in answer.json()["headers"])}
    left = {name for name, _ in answer.json()["headers"]} & {name.lower() for name, _ in FORGED}
    assert left <= {"x-cellmesh-user", "x-forwarded-proto", "x-request-id", "traceparent", "tracestate"}
    assert set(asked.headers) <= {"authorization", "x-request-id"}


async def test_a_client_cannot_have_dropped_what_the_edge_says(edge: EdgeUnderTest) -> None:
    """Prove that naming the edge's headers as those of one hop does not keep them from the app."""
    told = ("x-cellmesh-user", "x-forwarded-prefix", "x-forwarded-proto", "x-request-id", "traceparent")
    for name in told:
        answer = await get(edge.socket, "/dev/", user=ALICE, headers=[("Connection", f"keep-alive, {name}")])
        assert answer.status in {200, 400}
        if answer.status == 200:
            assert all(len(answer.header_of_request(each)) == 1 for each in told), name


async def test_with_early_mutation_away_forged_headers_pass() -> None:
    """Prove that the test before can fail: without that setting an app sees what a client says of itself."""

    def spoil(config: dict) -> dict:
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        manager["early_header_mutation_extensions"] = []
        return config

    async with running_edge(spoil=spoil) as spoilt:
        await furnish(spoilt)
        answer = await get(spoilt.socket, "/", user=ALICE, headers=FORGED)
    assert answer.header_of_request("x-forwarded-host") == ["evil.test"]


async def test_the_app_never_sees_the_credential_nor_the_edge_the_apps_server(edge: EdgeUnderTest) -> None:
    """Prove that the token is gone on the way in, and what an app says of itself on the way out."""
    answer = await get(edge.socket, "/", user=ALICE)
    assert answer.header_of_request("authorization") == []
    assert not {"server", "x-powered-by", "x-envoy-upstream-service-time"} & set(answer.headers)


async def test_a_trace_begins_at_the_edge(edge: EdgeUnderTest) -> None:
    """Prove that an app gets a trace context of ours, another one for each request."""
    contexts = [(await get(edge.socket, "/", user=ALICE)).header_of_request("traceparent")[0] for _ in range(2)]
    traces = {context.split("-")[1] for context in contexts}
    assert len(traces) == 2
    assert all(len(trace) == 32 and int(trace, 16) for trace in traces)
