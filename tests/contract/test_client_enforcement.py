"""A channel enforces the policy of every RPC there is on who calls through it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from cellmesh.mesh import deadline
from cellmesh.mesh.breaker import Breaker
from cellmesh.mesh.channel import MeshChannel, unix_channel
from cellmesh.mesh.errors import DeadlineExceeded, DownstreamUnavailable, RemoteError
from cellmesh.mesh.policy import Retry, policy_of
from support.contracts import AnyService, Behavior, invoke, path_of
from support.samples import sample

# Between a call and what the server sees of its deadline lies the way there, and gRPC's header that rounds up.
_SLACK = 5.0
_ROUNDING = 1.01


@asynccontextmanager
async def _called(
    directory: Path, behave: Behavior, *, fail_max: int = 1000
) -> AsyncIterator[tuple[MeshChannel, AnyService]]:
    """Serve every RPC with a plain gRPC server, which enforces nothing, and give a channel to it."""
    service = AnyService(behave=behave)
    server = grpc.aio.server()
    service.register(server)
    server.add_insecure_port(f"unix:{directory}/s")
    await server.start()
    try:
        breaker = Breaker("test", fail_max=fail_max)
        async with unix_channel(directory / "s", downstream="test", breaker=breaker) as channel:
            yield channel, service
    finally:
        await server.stop(None)


async def _unavailable(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")


@pytest.mark.asyncio
async def test_deadline_is_the_contracts(method: MethodDescriptor, tmp_path: Path) -> None:
    """A call has the default deadline, a longer wish is cut, and the inbound call's is never outlived."""
    seen: list[float] = []

    async def note(context: grpc.aio.ServicerContext[Any, Any]) -> None:
        seen.append(context.time_remaining())

    policy = policy_of(path_of(method))
    # Less than the default, and no less than a busy machine may need for a call.
    inbound = policy.default_deadline * 0.8
    async with _called(tmp_path, note) as (channel, _):
        request = sample(method.input_type, {})
        await invoke(channel, method, request)
        await invoke(channel, method, request, timeout=policy.max_deadline * 10)
        with deadline.scope(inbound):
            await invoke(channel, method, request)
    for left, expected in zip(seen, (policy.default_deadline, policy.max_deadline, inbound), strict=True):
        assert expected - _SLACK < left <= expected * _ROUNDING


@pytest.mark.asyncio
async def test_call_with_no_time_left_is_not_made(method: MethodDescriptor, tmp_path: Path) -> None:
    """An inbound call whose deadline is over makes no more calls."""

    async def answer(_: grpc.aio.ServicerContext[Any, Any]) -> None:
        return

    async with _called(tmp_path, answer) as (channel, service):
        with deadline.scope(0), pytest.raises(DeadlineExceeded):
            await invoke(channel, method, sample(method.input_type, {}))
    assert service.calls == []


@pytest.mark.asyncio
async def test_retries_are_the_contracts(method: MethodDescriptor, tmp_path: Path) -> None:
    """An unavailable downstream is tried as often as the contract allows: once where a repeat could do it twice."""
    policy = policy_of(path_of(method))
    async with _called(tmp_path, _unavailable) as (channel, service):
        with pytest.raises(DownstreamUnavailable):
            await invoke(channel, method, sample(method.input_type, {}), timeout=policy.max_deadline)
    assert len(service.calls) == (1 if policy.retry is Retry.NONE else policy.max_attempts)


@pytest.mark.asyncio
async def test_mutation_without_request_id_is_not_repeated(method: MethodDescriptor, tmp_path: Path) -> None:
    """Where repeating is safe only with a `request_id`, a request without one is sent once."""
    if policy_of(path_of(method)).retry is not Retry.REQUEST_ID:
        return
    request = sample(method.input_type, {})
    request.ClearField("request_id")
    async with _called(tmp_path, _unavailable) as (channel, service):
        with pytest.raises(DownstreamUnavailable):
            await invoke(channel, method, request)
    assert len(service.calls) == 1


@pytest.mark.asyncio
async def test_other_errors_are_not_repeated(method: MethodDescriptor, tmp_path: Path) -> None:
    """An answer that is an error is still the answer, even one that says the downstream is full."""

    async def full(context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    async with _called(tmp_path, full) as (channel, service):
        with pytest.raises(RemoteError):
            await invoke(channel, method, sample(method.input_type, {}))
    assert len(service.calls) == 1


@pytest.mark.asyncio
async def test_open_breaker_spares_the_downstream(method: MethodDescriptor, tmp_path: Path) -> None:
    """Once the breaker is open nothing more is sent, neither retries nor new calls."""
    async with _called(tmp_path, _unavailable, fail_max=1) as (channel, service):
        for _ in range(3):
            with pytest.raises(DownstreamUnavailable):
                await invoke(channel, method, sample(method.input_type, {}))
        assert channel.breaker.state == "open"
    assert len(service.calls) == 1
