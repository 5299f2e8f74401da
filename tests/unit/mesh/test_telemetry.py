"""Traces cross calls, and what a guest says of its part is checked first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from cellmesh.api.guest.v1 import guest_service_pb2, guest_service_pb2_grpc
from cellmesh.api.hypervisor.v1 import vm_service_pb2_grpc
from cellmesh.mesh import telemetry
from cellmesh.mesh.channel import guest_channel, unix_channel
from cellmesh.mesh.server import MeshServer
from support.vm_service import GET, Vms

_PATIENCE = 30.0


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Give where the spans of this process go; OpenTelemetry takes one provider a process."""
    exporter = InMemorySpanExporter()
    provider = telemetry.tracer_provider("test", version="1", sampler=ALWAYS_ON)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    """Give the exporter with nothing in it yet."""
    exporter.clear()
    return exporter


class Guest(guest_service_pb2_grpc.GuestServiceServicer):
    """An agent that says how long it took."""

    def __init__(self, claim: str) -> None:
        self._claim = claim
        self.metadata: dict[str, Any] = {}

    async def GetInfo(
        self, request: guest_service_pb2.GetInfoRequest, context: grpc.aio.ServicerContext
    ) -> guest_service_pb2.GetInfoResponse:
        """Answer with a claim."""
        self.metadata = dict(context.invocation_metadata() or ())
        context.set_trailing_metadata((("cellmesh-guest-span", self._claim),))
        return guest_service_pb2.GetInfoResponse(boot_id="00000000-0000-4000-8000-000000000001")


@asynccontextmanager
async def _guest(path: Path, guest: Guest) -> AsyncIterator[guest_service_pb2_grpc.GuestServiceAsyncStub]:
    server = grpc.aio.server()
    guest_service_pb2_grpc.add_GuestServiceServicer_to_server(guest, server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        async with guest_channel(path, vm_id="vm-1") as channel:
            yield guest_service_pb2_grpc.GuestServiceStub(channel)
    finally:
        await server.stop(None)


def _by_kind(spans: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    found: dict[str, list[ReadableSpan]] = {}
    for span in spans.get_finished_spans():
        found.setdefault("guest" if (span.attributes or {}).get("cellmesh.side") else span.kind.name, []).append(span)
    return found


@pytest.mark.asyncio
async def test_one_trace_from_caller_to_servicer(spans: InMemorySpanExporter, tmp_path: Path) -> None:
    """The servicer's span is the child of the caller's, and no header is copied into either."""
    server = MeshServer([Vms().register])
    server.add_operator_socket(tmp_path / "s")
    async with server, unix_channel(tmp_path / "s", downstream="d") as channel:
        await vm_service_pb2_grpc.VmServiceStub(channel).GetVm(
            GET, timeout=_PATIENCE, metadata=(("authorization", "canary"),)
        )
    found = _by_kind(spans)
    (client,), (served,) = found["CLIENT"], found["SERVER"]
    assert served.parent is not None
    assert served.parent.span_id == client.context.span_id
    assert served.context.trace_id == client.context.trace_id
    assert "canary" not in client.to_json() + served.to_json()


@pytest.mark.asyncio
async def test_guests_part_is_a_child_inside_ours(spans: InMemorySpanExporter, tmp_path: Path) -> None:
    """The guest gets the trace, and its part lies within the time we waited, on our clock."""
    guest = Guest("00000000000000ab 5 10")
    async with _guest(tmp_path / "s", guest) as stub:
        await stub.GetInfo(guest_service_pb2.GetInfoRequest(), timeout=_PATIENCE)
    found = _by_kind(spans)
    (client,), (inner,) = found["CLIENT"], found["guest"]
    assert f"{client.context.trace_id:032x}" in guest.metadata["traceparent"]
    assert inner.parent is not None
    assert inner.parent.span_id == client.context.span_id
    assert client.start_time is not None
    assert inner.start_time is not None
    assert inner.end_time is not None
    assert client.end_time is not None
    assert client.start_time <= inner.start_time <= inner.end_time <= client.end_time
    assert inner.end_time - inner.start_time == 10_000


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "claim", ["", "junk", "00000000000000ab 0 99999999999", "00000000000000AB 1 1", "00000000000000ab -1 1"]
)
async def test_guests_impossible_claim_is_dropped(spans: InMemorySpanExporter, tmp_path: Path, claim: str) -> None:
    """A claim of another shape, or of more time than passed, makes no span and no error."""
    async with _guest(tmp_path / "s", Guest(claim)) as stub:
        await stub.GetInfo(guest_service_pb2.GetInfoRequest(), timeout=_PATIENCE)
    assert "guest" not in _by_kind(spans)


def test_without_a_span_there_is_still_an_id() -> None:
    """Outside of a trace each fault gets an id of its own to look for."""
    first, second = telemetry.trace_id(), telemetry.trace_id()
    assert len(first) == 32
    assert first != second


@pytest.mark.parametrize(
    ("traceparent", "parent"),
    [
        ("00-0123456789abcdef0123456789abcdef-0123456789abcdef-01", 0x0123456789ABCDEF0123456789ABCDEF),
        ("", None),
        ("nonsense", None),
        ("00-00000000000000000000000000000000-0123456789abcdef-01", None),
    ],
)
def test_request_goes_on_in_the_trace_it_names(
    spans: InMemorySpanExporter, traceparent: str, parent: int | None
) -> None:
    """A request of another protocol has its span in the trace it came with, or in one of its own."""
    with telemetry.request("page", traceparent) as trace_id:
        assert telemetry.trace_id() == trace_id
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind) == ("page", trace.SpanKind.SERVER)
    assert trace.format_trace_id(span.context.trace_id) == trace_id
    assert (span.parent.trace_id if span.parent else None) == parent
    assert parent is None or span.context.trace_id == parent
