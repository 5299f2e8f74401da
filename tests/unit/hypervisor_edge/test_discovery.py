"""What an Envoy is told and when, without one: every word of the protocol is said by the test."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cellmesh.envoy.discovery.v3 import discovery_pb2
from cellmesh.hypervisor.edge import discovery as edge_discovery
from cellmesh.hypervisor.edge import resources, subscription
from cellmesh.hypervisor.edge.discovery import Discovery, EdgeRefused, EdgeUnreachable, Stream, TooManyEnvoys
from cellmesh.hypervisor.edge.endpoint import Endpoint
from cellmesh.hypervisor.edge.probe import ProbeFailed

pytestmark = pytest.mark.asyncio

Response = discovery_pb2.DeltaDiscoveryResponse
HERE = Endpoint(path=Path("/run/here.sock"), vm_id="vm", container="live", epoch=1, generation=1)
THERE = Endpoint(path=Path("/run/there.sock"), vm_id="vm", container="live", epoch=1, generation=2)


def say(stream: Stream, type_url: str, **fields: object) -> None:
    """Say something as an Envoy."""
    stream.hear(discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, **fields))


def take(stream: Stream, response: Response) -> None:
    """Take a response as an Envoy, and ask for the endpoints of clusters that are new."""
    say(stream, response.type_url, response_nonce=response.nonce)
    if response.type_url == resources.CLUSTER and response.resources:
        names = [resource.name for resource in response.resources]
        say(stream, resources.ENDPOINT, resource_names_subscribe=names)


def refuse(stream: Stream, response: Response, message: str = "no") -> None:
    """Refuse a response as an Envoy."""
    request = discovery_pb2.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
    request.error_detail.message = message
    stream.hear(request)


def taken_all(stream: Stream) -> list[Response]:
    """Take whatever comes until nothing comes; return it."""
    told: list[Response] = []
    while responses := list(stream.responses()):
        for response in responses:
            told.append(response)
            take(stream, response)
    return told


def names(response: Response) -> set[str]:
    """Return the names a response tells of."""
    return {resource.name for resource in response.resources}


async def is_served(discovery: Discovery, name: str, version: int) -> bool:
    """Return whether a cluster is served already."""
    try:
        await discovery.served(name, version, timeout=0.01)
    except EdgeUnreachable:
        return False
    return True


async def test_a_stream_starts_with_everything_clusters_first() -> None:
    """Prove the order in which a new Envoy is told."""
    discovery = Discovery()
    version = discovery.put({"a/live": HERE, "b/live": THERE})
    with discovery.stream() as stream:
        assert list(stream.responses()) == []
        say(stream, resources.CLUSTER)
        (clusters,) = stream.responses()
        assert (clusters.type_url, names(clusters)) == (resources.CLUSTER, {"a/live", "b/live"})
        assert not await is_served(discovery, "a/live", version)
        take(stream, clusters)
        (endpoints,) = stream.responses()
        assert (endpoints.type_url, names(endpoints)) == (resources.ENDPOINT, {"a/live", "b/live"})
        assert not await is_served(discovery, "a/live", version)
        take(stream, endpoints)
        assert await is_served(discovery, "a/live", version)


async def test_a_switch_is_one_endpoint() -> None:
    """Prove that a change tells of what changed and nothing else, and one at a time."""
    discovery = Discovery()
    discovery.put({f"{number}/live": HERE for number in range(100)})
    with discovery.stream() as stream:
        say(stream, resources.CLUSTER)
        taken_all(stream)
        version = discovery.put({"7/live": THERE})
        (response,) = stream.responses()
        assert (response.type_url, names(response), list(response.removed_resources)) == (
            resources.ENDPOINT,
            {"7/live"},
            [],
        )
        later = discovery.put({"7/live": HERE, "8/live": THERE})
        assert list(stream.responses()) == []
        take(stream, response)
        assert await is_served(discovery, "7/live", version)
        assert not await is_served(discovery, "7/live", later)
        (second,) = stream.responses()
        assert names(second) == {"7/live", "8/live"}
        take(stream, second)
        assert await is_served(discovery, "7/live", later)


async def test_what_is_the_same_is_not_told_again() -> None:
    """Prove that putting what is there already changes nothing and is served."""
    discovery = Discovery()
    discovery.put({"a/live": HERE})
    with discovery.stream() as stream:
        say(stream, resources.CLUSTER)
        taken_all(stream)
        version = discovery.put({"a/live": HERE, "gone/live": None})
        assert list(stream.responses()) == []
        assert await is_served(discovery, "a/live", version)
        discovery.put({"a/live": THERE})
        again = discovery.put({"a/live": HERE})
        assert list(stream.responses()) == []
        assert await is_served(discovery, "a/live", again)


async def test_an_envoy_that_comes_back_is_told_what_it_missed() -> None:
    """Prove that held versions are believed, even by a hypervisor that was started anew, and what is gone is taken."""
    before = Discovery()
    before.put({"same/live": HERE, "moved/live": HERE, "gone/live": HERE})
    with before.stream() as stream:
        say(stream, resources.CLUSTER)
        told = taken_all(stream)
    held = {
        type_url: {
            each.name: each.version for response in told if response.type_url == type_url for each in response.resources
        }
        for type_url in (resources.CLUSTER, resources.ENDPOINT)
    }
    after = Discovery()
    with after.stream() as stream:
        say(stream, resources.CLUSTER, initial_resource_versions=held[resources.CLUSTER])
        say(
            stream,
            resources.ENDPOINT,
            initial_resource_versions=held[resources.ENDPOINT],
            resource_names_subscribe=list(held[resources.ENDPOINT]),
        )
        assert list(stream.responses()) == [], "before the first put nothing is known to be gone"
        version = after.put({"same/live": HERE, "moved/live": THERE, "new/live": HERE})
        clusters, endpoints = stream.responses()
        assert (names(clusters), set(clusters.removed_resources)) == ({"new/live"}, {"gone/live"})
        assert (names(endpoints), set(endpoints.removed_resources)) == ({"moved/live"}, {"gone/live"})
        assert await is_served(after, "same/live", version)
        take(stream, clusters)
        take(stream, endpoints)
        taken_all(stream)
        for name in ("same/live", "moved/live", "new/live", "gone/live"):
            assert await is_served(after, name, version)


async def test_an_envoy_is_answered_even_if_there_is_nothing() -> None:
    """Prove that an Envoy that starts is told that there are no clusters, once."""
    discovery = Discovery()
    discovery.put({})
    with discovery.stream() as stream:
        say(stream, resources.CLUSTER)
        (response,) = stream.responses()
        assert (list(response.resources), list(response.removed_resources)) == ([], [])
        take(stream, response)
        assert list(stream.responses()) == []


async def test_a_refusal_is_told_and_not_repeated_until_the_change() -> None:
    """Prove the whole way of a refusal of one resource."""
    discovery = Discovery()
    good = discovery.put({"a/live": HERE})
    with discovery.stream() as stream:
        say(stream, resources.CLUSTER)
        taken_all(stream)
        bad = discovery.put({"a/live": THERE})
        (response,) = stream.responses()
        refuse(stream, response, "path\nis\x1b[31m bad" + "x" * 5_000)
        with pytest.raises(EdgeRefused) as refused:
            await discovery.served("a/live", bad, timeout=5)
        assert str(refused.value).startswith("path is [31m bad")
        assert len(str(refused.value)) == 1_000
        assert list(stream.responses()) == []
        assert await is_served(discovery, "a/live", good)
        mended = discovery.put({"a/live": HERE})
        assert list(stream.responses()) == [], "it has that one already"
        assert await is_served(discovery, "a/live", mended)


async def test_of_many_only_the_bad_one_is_refused() -> None:
    """Prove that a refused response is sent again in halves until the bad one is alone."""
    discovery = Discovery()
    wanted = {f"{number}/live": HERE for number in range(100)}
    version = discovery.put(wanted)
    with discovery.stream() as stream:
        say(stream, resources.CLUSTER)
        told = 0
        while responses := list(stream.responses()):
            for response in responses:
                told += 1
                if response.type_url == resources.ENDPOINT and "42/live" in names(response):
                    refuse(stream, response)
                else:
                    take(stream, response)
        assert told < 20
        for name in wanted:
            if name != "42/live":
                assert await is_served(discovery, name, version)
        with pytest.raises(EdgeRefused, match="no"):
            await discovery.served("42/live", version, timeout=5)


async def test_an_old_word_counts_for_nothing() -> None:
    """Prove that a word on a response that is not under way changes nothing."""
    discovery = Discovery()
    version = discovery.put({"a/live": HERE})
    with discovery.stream() as stream:
        say(stream, resources.CLUSTER)
        (response,) = stream.responses()
        say(stream, resources.CLUSTER, response_nonce="4711")
        say(stream, resources.ENDPOINT, response_nonce=response.nonce)
        say(stream, "type.googleapis.com/of.no.Kind", response_nonce=response.nonce)
        assert not await is_served(discovery, "a/live", version)
        take(stream, response)
        taken_all(stream)
        assert await is_served(discovery, "a/live", version)


async def test_what_is_asked_for_again_is_sent_again() -> None:
    """Prove that a new subscription to a known endpoint is answered, and one to an unknown with its absence."""
    discovery = Discovery()
    discovery.put({"a/live": HERE})
    with discovery.stream() as stream:
        say(stream, resources.CLUSTER)
        taken_all(stream)
        say(stream, resources.ENDPOINT, resource_names_unsubscribe=["a/live"])
        assert list(stream.responses()) == []
        say(stream, resources.ENDPOINT, resource_names_subscribe=["a/live", "unknown/live"])
        (response,) = stream.responses()
        assert (names(response), set(response.removed_resources)) == ({"a/live"}, {"unknown/live"})


async def test_served_means_by_every_envoy() -> None:
    """Prove that with two Envoys both have to take it, and that one that leaves is not waited for."""
    discovery = Discovery()
    with discovery.stream() as first, discovery.stream() as second:
        version = discovery.put({"a/live": HERE})
        for stream in (first, second):
            say(stream, resources.CLUSTER)
        taken_all(first)
        assert not await is_served(discovery, "a/live", version)
        taken_all(second)
        assert await is_served(discovery, "a/live", version)
        moved = discovery.put({"a/live": THERE})
        with discovery.stream() as third:
            taken_all(first)
            taken_all(second)
            waiting = asyncio.create_task(discovery.served("a/live", moved, timeout=30))
            await asyncio.sleep(0)
            assert not waiting.done()
            say(third, resources.CLUSTER)
        await waiting


async def test_without_an_envoy_nothing_is_served() -> None:
    """Prove that an edge that is not there, leaves, or cannot be proven to have it is told apart from a refusal."""

    async def no_proof() -> None:
        raise ProbeFailed("the worker is gone")

    discovery = Discovery(proof=no_proof)
    version = discovery.put({"a/live": HERE})
    with pytest.raises(EdgeUnreachable, match="No edge is connected"):
        await discovery.served("a/live", version, timeout=5)
    with discovery.stream() as stream:
        waiting = asyncio.create_task(discovery.served("a/live", version, timeout=30))
        await asyncio.sleep(0)
        say(stream, resources.CLUSTER)
    with pytest.raises(EdgeUnreachable, match="No edge is connected"):
        await waiting
    with discovery.stream() as stream:
        say(stream, resources.CLUSTER)
        taken_all(stream)
        with pytest.raises(EdgeUnreachable, match="the worker is gone"):
            await discovery.served("a/live", version, timeout=5)


async def test_everything_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove the bounds on Envoys, on names of one, and on one response."""
    monkeypatch.setattr(subscription, "MAX_NAMES", 10)
    monkeypatch.setattr(subscription, "PUSH_RESOURCES", 3)
    monkeypatch.setattr(edge_discovery, "MAX_STREAMS", 1)
    discovery = Discovery()
    discovery.put({f"{number}/live": HERE for number in range(7)})
    with discovery.stream() as stream:
        with pytest.raises(TooManyEnvoys), discovery.stream():
            pass
        say(stream, resources.CLUSTER)
        told = taken_all(stream)
        assert max(len(response.resources) for response in told) == 3
        assert set().union(*(names(response) for response in told)) == {f"{number}/live" for number in range(7)}
        with pytest.raises(subscription.TooManyNames):
            say(stream, resources.ENDPOINT, resource_names_subscribe=[f"x{number}" for number in range(20)])


async def test_nothing_is_kept_of_what_is_gone() -> None:
    """Prove that clusters that came and went leave nothing behind."""
    discovery = Discovery()
    discovery.put({})
    with discovery.stream() as stream:
        say(stream, resources.CLUSTER)
        for number in range(50):
            name = f"{number}/live"
            discovery.put({name: HERE})
            taken_all(stream)
            version = discovery.put({name: None})
            taken_all(stream)
            say(stream, resources.ENDPOINT, resource_names_unsubscribe=[name])
            assert await is_served(discovery, name, version)
        for kind in stream._kinds.values():
            for kept in (kind.taken, kind.refused, kind._held, kind._wanted, kind._dirty):
                assert not kept
