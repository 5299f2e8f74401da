"""Bad input to every RPC, made from the descriptors, over the mesh every service stands on."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from cellmesh.mesh.identity import EDGE, Role
from cellmesh.mesh.limits import SERVICE_MESSAGE_BYTES
from cellmesh.mesh.policy import policy_of
from cellmesh.mesh.server import GuestServer, MeshServer
from support.bad_input import fault, most_bytes
from support.contracts import METHODS, AnyService, path_of
from support.mutants import mutants
from support.raw_calls import call, channel

# What a servicer without a domain cannot know; everything else is the contract's, so the mesh answers for all services.
KNOWN = {"request_id": lambda: str(uuid.uuid4())}


# Only the hypervisor calls the others, in a guest; the agent answers for itself, without the mesh.
OUTSIDERS = {Role.OPERATOR, Role.GUEST_AGENT, Role.EDGE}
SERVED = [method for method in METHODS if OUTSIDERS & policy_of(path_of(method)).callers]
each_served = pytest.mark.parametrize("served", SERVED, ids=path_of)


async def _nothing(_: grpc.aio.ServicerContext[Any, Any]) -> None:
    return None


@asynccontextmanager
async def _serving(method: MethodDescriptor, directory: Path) -> AsyncIterator[tuple[Path, AnyService]]:
    """Serve every RPC where a caller of `method` calls: its operator's socket, its guest's, or the edge's."""
    service = AnyService(_nothing)
    path = directory / "s.sock"
    if Role.GUEST_AGENT in policy_of(path_of(method)).callers:
        guest = GuestServer(path, [service.register], vm_id=str(uuid.uuid4()), inner=directory / "inner.sock")
        await guest.start()
        try:
            yield path, service
        finally:
            await guest.stop()
    else:
        mesh = MeshServer([service.register])
        if Role.OPERATOR in policy_of(path_of(method)).callers:
            mesh.add_operator_socket(path)
        else:
            mesh.add_unix_socket(path, services=[service.register], caller=EDGE)
        async with mesh:
            yield path, service


@each_served
@pytest.mark.asyncio
async def test_no_bad_input_reaches_a_servicer(served: MethodDescriptor, tmp_path: Path) -> None:
    """Every mutant that breaks a rule is INVALID_ARGUMENT, names the field, and no servicer ever sees it."""
    bad = [mutant for mutant in mutants(served.input_type, KNOWN) if mutant.broken or mutant.undecodable]
    async with _serving(served, tmp_path) as (path, service), channel(path) as to:
        faults = [fault(mutant, await call(to, served, mutant.data), most=most_bytes(served)) for mutant in bad]
        assert [found for found in faults if found] == []
        assert service.calls == []
    assert bad


@each_served
@pytest.mark.asyncio
async def test_no_odd_input_is_refused(served: MethodDescriptor, tmp_path: Path) -> None:
    """Every mutant that obeys the rules passes: what was refused above was refused for its fault."""
    passing = (mutant for mutant in mutants(served.input_type, KNOWN) if not mutant.broken and not mutant.undecodable)
    odd = [mutant for mutant in passing if len(mutant.data) <= SERVICE_MESSAGE_BYTES]
    async with _serving(served, tmp_path) as (path, service), channel(path) as to:
        outcomes = [await call(to, served, mutant.data) for mutant in odd]
        assert [(str(m), o) for m, o in zip(odd, outcomes, strict=True) if o.code != "OK"] == []
        assert len(service.calls) == len(odd)


@each_served
@pytest.mark.asyncio
async def test_a_message_without_end_is_refused(served: MethodDescriptor, tmp_path: Path) -> None:
    """Five megabytes are refused by their length, before they are decoded."""
    async with _serving(served, tmp_path) as (path, service), channel(path) as to:
        outcome = await call(to, served, b"\x0a" * 5_000_000)
        assert outcome.code == "RESOURCE_EXHAUSTED"
        assert service.calls == []


@each_served
@pytest.mark.asyncio
async def test_a_server_that_checks_nothing_is_noticed(served: MethodDescriptor, tmp_path: Path) -> None:
    """The control: the same calls to a server without the mesh are found to be answered wrongly."""
    service = AnyService(_nothing)
    server = grpc.aio.server()
    service.register(server)
    server.add_insecure_port(f"unix:{tmp_path / 's.sock'}")
    await server.start()
    bad = [mutant for mutant in mutants(served.input_type, KNOWN) if mutant.broken or mutant.undecodable]
    async with channel(tmp_path / "s.sock") as to:
        faults = [fault(mutant, await call(to, served, mutant.data), most=most_bytes(served)) for mutant in bad]
    await server.stop(None)
    assert all(faults)
