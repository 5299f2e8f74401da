"""A server enforces the policy of every RPC there is, whatever its servicer does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from cellmesh.mesh import deadline, identity
from cellmesh.mesh.errors import Code
from cellmesh.mesh.identity import Caller, Role
from cellmesh.mesh.interceptor import PolicyInterceptor
from cellmesh.mesh.on_behalf import TOKEN_KEY
from cellmesh.mesh.policy import ActsFor, policy_of
from support.contracts import AnyService, Behavior, invoke, path_of, refusal
from support.issuer import USER, Believer
from support.samples import sample, violations

# Between a client's deadline and what a server sees of it lie a rounding and the way there.
_SLACK = 5.0


@asynccontextmanager
async def _served(
    directory: Path, behave: Behavior, caller: Caller | None
) -> AsyncIterator[tuple[grpc.aio.Channel, AnyService]]:
    """Serve every RPC to `caller` and give a plain gRPC channel, which enforces nothing."""
    service = AnyService(behave=behave)
    server = grpc.aio.server(interceptors=[PolicyInterceptor(lambda _: caller, verify=Believer())])
    service.register(server)
    server.add_insecure_port(f"unix:{directory}/s")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{directory}/s") as channel:
            yield channel, service
    finally:
        await server.stop(None)


async def _nothing(_: grpc.aio.ServicerContext[Any, Any]) -> None:
    return


def _token(method: MethodDescriptor) -> list[tuple[str, str]]:
    """Return a user token for an RPC that is not served without one."""
    return [(TOKEN_KEY, "a.b.c")] if policy_of(path_of(method)).acts_for is ActsFor.REQUIRED else []


def _caller(method: MethodDescriptor) -> Caller:
    return Caller(role=min(policy_of(path_of(method)).callers), name="test")


@pytest.mark.asyncio
@pytest.mark.parametrize("role", [None, *Role])
async def test_only_named_callers_get_in(method: MethodDescriptor, role: Role | None, tmp_path: Path) -> None:
    """A role the contract does not name, or no identity at all, never reaches the servicer; a named one does."""
    caller = None if role is None else Caller(role=role, name="test")
    async with _served(tmp_path, _nothing, caller) as (channel, service):
        request = sample(method.input_type, {"user_id": lambda: USER})
        error = await refusal(channel, method, request, metadata=_token(method))
    if role in policy_of(path_of(method)).callers:
        assert error is None
        assert service.calls == [path_of(method)]
    else:
        assert error is not None
        assert (error.code, error.reason, error.domain) == (Code.PERMISSION_DENIED, "CALLER_NOT_ALLOWED", "cellmesh")
        assert service.calls == []


@pytest.mark.asyncio
async def test_call_without_deadline_gets_the_contracts(method: MethodDescriptor, tmp_path: Path) -> None:
    """A servicer has the default deadline where the caller brought none, and the longest where it wants more."""
    seen: list[float | None] = []

    async def note(_: grpc.aio.ServicerContext[Any, Any]) -> None:
        seen.append(deadline.remaining())
        caller = identity.caller()
        assert caller is not None
        assert replace(caller, user=None) == _caller(method)

    policy = policy_of(path_of(method))
    async with _served(tmp_path, note, _caller(method)) as (channel, _):
        await invoke(channel, method, sample(method.input_type, {}))
        await invoke(channel, method, sample(method.input_type, {}), timeout=policy.max_deadline * 10)
    for left, expected in zip(seen, (policy.default_deadline, policy.max_deadline), strict=True):
        assert left is not None
        assert expected - _SLACK < left <= expected


@pytest.mark.asyncio
async def test_servicer_that_hangs_is_ended(method: MethodDescriptor, tmp_path: Path) -> None:
    """A servicer that never answers is cancelled by the caller's deadline, for streams as for unary calls."""
    entered, ended = asyncio.Event(), asyncio.Event()

    async def hang(_: grpc.aio.ServicerContext[Any, Any]) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with _served(tmp_path, hang, _caller(method)) as (channel, _):
        # On a busy machine a short deadline may be over before the servicer is asked.
        for timeout in (0.05, 0.5, 5.0, 30.0):
            error = await refusal(channel, method, sample(method.input_type, {}), timeout=timeout)
            assert error is not None
            assert error.code is Code.DEADLINE_EXCEEDED
            if entered.is_set():
                break
        async with asyncio.timeout(30):
            await ended.wait()


@pytest.mark.asyncio
async def test_request_that_breaks_a_rule_is_refused(method: MethodDescriptor, tmp_path: Path) -> None:
    """An empty request either breaks no rule, or is refused with the fields that do, and never reaches the servicer."""
    request = GetMessageClass(method.input_type)()
    broken = violations(request)
    async with _served(tmp_path, _nothing, _caller(method)) as (channel, service):
        error = await refusal(channel, method, request)
    if not broken:
        assert error is None
        return
    assert service.calls == []
    assert error is not None
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert [violation.field for violation in error.field_violations] == broken


@pytest.mark.asyncio
async def test_unexpected_error_says_nothing(method: MethodDescriptor, tmp_path: Path) -> None:
    """What a servicer did not mean to say never leaves the process: INTERNAL, and where to look."""

    async def fail(_: grpc.aio.ServicerContext[Any, Any]) -> None:
        raise RuntimeError("the password is hunter2")

    async with _served(tmp_path, fail, _caller(method)) as (channel, _):
        error = await refusal(channel, method, sample(method.input_type, {}))
    assert error is not None
    assert (error.code, error.reason) == (Code.INTERNAL, "INTERNAL")
    assert "hunter2" not in error.message
    assert error.metadata["trace_id"] in error.message
