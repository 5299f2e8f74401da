"""What is asked of Envoy beside requests: a ping of every worker, and traces where somebody takes them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest

from cellmesh.hypervisor.edge.admin import EnvoyAdmin
from cellmesh.hypervisor.edge.options import EdgeOptions
from cellmesh.hypervisor.edge.probe import ProbeFailed, WorkerProbe
from support.envoy import ALICE, READY_SECONDS, WORKERS, EdgeUnderTest, furnish, running_edge, until
from support.http_client import get

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROBES = r"^listener\.probe\.worker_\d+\.downstream_cx_active$"
PINGS = r"^listener\.probe\.worker_\d+\.downstream_cx_total$"


async def test_every_worker_is_asked(edge: EdgeUnderTest) -> None:
    """Prove that a probe has one connection to each worker, however often it has to make them anew."""
    probe = WorkerProbe(edge.options.probe_socket, edge.admin)
    # The fixture's own would count as well.
    edge.discovery._proof.close()  # type: ignore[attr-defined]
    try:
        for _ in range(10):
            await probe()
            assert list((await edge.admin.stats(PROBES)).values()) == [1] * WORKERS
            probe.close()
        await probe()
        made = sum((await edge.admin.stats(PINGS)).values())
        for _ in range(10):
            await probe()
        assert sum((await edge.admin.stats(PINGS)).values()) == made, "connections are kept"
        await asyncio.gather(*(probe() for _ in range(20)))
    finally:
        probe.close()


async def test_a_probe_that_is_given_up_leaves_no_answer_behind(edge: EdgeUnderTest) -> None:
    """Prove that after a cancelled ping the next one waits for its own answer."""
    probe = WorkerProbe(edge.options.probe_socket, edge.admin)
    edge.discovery._proof.close()  # type: ignore[attr-defined]
    try:
        await probe()
        pinging = asyncio.create_task(probe())
        await asyncio.sleep(0)
        pinging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pinging
        assert probe._connections == []
        await probe()
    finally:
        probe.close()


async def test_an_envoy_that_is_away_fails_the_probe(edge: EdgeUnderTest) -> None:
    """Prove that no connection is an error of its own."""
    directory = edge.options.directory
    for socket, admin in (
        (directory / "none.sock", edge.admin),
        (edge.options.probe_socket, EnvoyAdmin(directory / "none.sock")),
    ):
        with pytest.raises(ProbeFailed):
            await WorkerProbe(socket, admin)()


async def test_traces_go_where_they_are_wanted() -> None:
    """Prove that with a collector each request's trace is sampled and sent, under the id the app was given."""
    exported: list[bytes] = []

    async def export(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        exported.append(request)
        return b""

    collector = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(export)
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    collector.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    port = collector.add_insecure_port("127.0.0.1:0")
    await collector.start()

    def with_collector(options: EdgeOptions) -> EdgeOptions:
        return replace(options, otlp=("127.0.0.1", port))

    try:
        async with running_edge(with_collector) as edge:
            await furnish(edge)
            got = await get(edge.socket, "/", user=ALICE)
            _, trace, _, flags = got.header_of_request("traceparent")[0].split("-")
            assert flags == "01"
            await until(lambda: any(bytes.fromhex(trace) in request for request in exported), READY_SECONDS)
    finally:
        await collector.stop(None)


async def test_without_a_collector_nothing_is_sampled(edge: EdgeUnderTest) -> None:
    """Prove that a trace nobody takes is marked as not sampled, so that nobody behind records it either."""
    got = await get(edge.socket, "/", user=ALICE)
    assert got.header_of_request("traceparent")[0].endswith("-00")
