"""Traces: the one place that knows how OpenTelemetry is set up and how gRPC calls get their spans."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import aio_client_interceptors, aio_server_interceptor
from opentelemetry.instrumentation.grpc.filters import service_prefix
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON, Sampler
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

# Generic in its stub, not when it runs.
ServerInterceptor: TypeAlias = "grpc.aio.ServerInterceptor[Any, Any]"

GUEST_SPAN_KEY = "cellmesh-guest-span"

# `<span id> <start after arrival, µs> <duration, µs>`, as a guest's agent says it.
_GUEST_SPAN = re.compile(r"([0-9a-f]{16}) ([0-9]{1,11}) ([0-9]{1,11})")
_OURS = "cellmesh."
_QUEUE = 2048
_BATCH = 256


def configure(service: str, *, version: str, otlp_endpoint: str | None = None) -> Callable[[], None]:
    """Set up tracing for this process; return what flushes it at the end.

    Without an endpoint calls still get trace ids, for the logs and for INTERNAL errors, and no span is recorded.
    """
    provider = tracer_provider(service, version=version, sampler=DEFAULT_ON if otlp_endpoint else ALWAYS_OFF)
    if otlp_endpoint:
        # 2 MB and 50 ms that only those who export pay.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint=otlp_endpoint, timeout=5),
                max_queue_size=_QUEUE,
                max_export_batch_size=_BATCH,
            )
        )
    trace.set_tracer_provider(provider)
    return provider.shutdown


def tracer_provider(service: str, *, version: str, sampler: Sampler) -> TracerProvider:
    """Return a provider that nothing exports from yet."""
    return TracerProvider(
        sampler=sampler,
        resource=Resource({"service.name": service, "service.version": version}),
        shutdown_on_exit=False,
    )


def server_interceptor() -> ServerInterceptor:
    """Return what gives each inbound call of our services a span; gRPC's own services get none."""
    made: ServerInterceptor = aio_server_interceptor(filter_=service_prefix(_OURS))  # type: ignore[no-untyped-call]
    return made


def client_interceptors(*, guest: bool) -> list[Any]:
    """Return what gives each outbound call a span; towards a guest also one for the guest's part of a unary call."""
    tracing = aio_client_interceptors(filter_=service_prefix(_OURS))  # type: ignore[no-untyped-call]
    return [*tracing, _UnaryCalls(guest=guest)]


@contextmanager
def request(name: str, traceparent: str) -> Iterator[str]:
    """Give what happens inside a span in the trace that a W3C `traceparent` names; yield the trace's id.

    One that is no traceparent starts a trace of its own. For servers that do not speak gRPC; who sent it is believed.
    """
    context = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    tracer = trace.get_tracer(__name__)
    with tracer.start_as_current_span(name, context=context, kind=trace.SpanKind.SERVER):
        yield trace_id()


def trace_id() -> str:
    """Return the id of the current trace, or a new one that at least ties a log line to an answer."""
    span = trace.get_current_span().get_span_context()
    return trace.format_trace_id(span.trace_id) if span.is_valid else secrets.token_hex(16)


class _UnaryCalls(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]  # generic in the stub only
    """Sits right above the wire: ends calls nobody waits for any more, and takes what a guest says about its part.

    gRPC loses sight of a call under an interceptor that is cancelled while it waits, as OpenTelemetry's does.
    """

    def __init__(self, *, guest: bool) -> None:
        self._guest = guest

    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        """Wait for the end of the call, so that it can be ended from here."""
        started = time.time_ns()
        call = await continuation(client_call_details, request)
        try:
            trailing = await call.trailing_metadata()
        except asyncio.CancelledError:
            call.cancel()
            raise
        for key, value in trailing or () if self._guest else ():
            if key == GUEST_SPAN_KEY and isinstance(value, str):
                record_guest_span(_text(client_call_details.method), value, started=started, ended=time.time_ns())
                break
        return call


def _text(method: str | bytes) -> str:
    return method.decode() if isinstance(method, bytes) else method


def record_guest_span(name: str, claim: str, *, started: int, ended: int) -> None:
    """Record a span the guest claims, on the host's clock and never outside of `started` and `ended` (ns).

    The guest's clock is not believed: where it spent longer than we waited, the claim is dropped.
    """
    match = _GUEST_SPAN.fullmatch(claim)
    if match is None or not trace.get_current_span().is_recording():
        return
    offset, duration = int(match[2]) * 1000, int(match[3]) * 1000
    if offset + duration > ended - started:
        return
    # What was not spent in the guest is taken to be equal on the way there and back.
    start = started + (ended - started - offset - duration) // 2 + offset
    span = trace.get_tracer(__name__).start_span(
        name,
        kind=trace.SpanKind.SERVER,
        start_time=start,
        attributes={"cellmesh.side": "guest", "cellmesh.guest_span_id": match[1]},
    )
    span.end(start + duration)
