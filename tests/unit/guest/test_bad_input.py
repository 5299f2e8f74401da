"""Bad input to the agent: the host is trusted and checks by the contract, so here it only must not break anything."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor

from cellmesh.api.common.v1 import container_pb2
from cellmesh.api.guest.v1 import (
    container_service_pb2,
    container_service_pb2_grpc,
    guest_service_pb2,
    guest_service_pb2_grpc,
)
from cellmesh.guest.exec.sessions import Sessions
from cellmesh.guest.identity import Assignment, Identity
from cellmesh.guest.servicers.containers import GuestContainerServicer
from cellmesh.guest.servicers.guest import GuestServicer
from cellmesh.guest.shutdown import Shutdown
from support.bad_input import fault
from support.local_runtime import FIRST_PORT, IMAGE, local_cell
from support.mutants import Mutant, mutants
from support.raw_calls import call, channel, methods

VM = "0c000000-0000-4000-8000-000000000000"
EPOCH = 5
NAME = "sandbox-live"
MOST = 256 * 1024
"""How many bytes of a message are tried."""
KNOWN = {
    "epoch": lambda: EPOCH,
    "vm_id": lambda: VM,
    "container_name": lambda: NAME,
    "exec_id": lambda: str(uuid.uuid4()),
    "argv": lambda: "/bin/true",
    "image": lambda: IMAGE,
    "ingress_port": lambda: FIRST_PORT + 1,
    "follow": lambda: False,
}
# Left to guests of their own: one sets the clock of the machine it runs on, one measures a guest's disk.
ELSEWHERE = {"SyncClock", "GetInfo"}
SERVED = [
    method
    for method in methods(guest_service_pb2.DESCRIPTOR, container_service_pb2.DESCRIPTOR)
    if method.name not in ELSEWHERE
]


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[None]:
    """Serve the agent's services, with processes in the containers' place and one of them running."""
    identity = Identity("0b000000-0000-4000-8000-000000000000")
    identity.assign(Assignment(vm_id=VM, epoch=EPOCH, discard_layers=False, heartbeat_interval=1.0))
    async with local_cell() as cell:
        sessions = Sessions(cell.containers, cell.group)
        server = grpc.aio.server()
        container_service_pb2_grpc.add_GuestContainerServiceServicer_to_server(
            GuestContainerServicer(identity, cell.containers, lambda: sessions), server
        )
        shutdown = Shutdown(cell.containers.stop_all)
        guest_service_pb2_grpc.add_GuestServiceServicer_to_server(GuestServicer(identity, shutdown), server)
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(0)
            sessions.stop()


def may_meet(mutant: Mutant) -> bool:
    """Tell whether the host could send this: it decodes, and fits in a message to a guest."""
    return not mutant.undecodable and len(mutant.data) < MOST


@pytest.mark.parametrize("method", SERVED, ids=lambda method: method.full_name)
@pytest.mark.asyncio
async def test_no_request_breaks_the_agent(
    method: MethodDescriptor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever decodes is done or refused with a reason of the contract, and afterwards the agent answers as before."""
    # What a shutdown flushes here is the whole machine's, which takes as long as that has to write.
    monkeypatch.setattr("cellmesh.guest.shutdown._flush", lambda: None)
    path = tmp_path / "agent.sock"
    async with serving(path), channel(path) as to:
        spec = container_pb2.ContainerSpec(image=IMAGE, argv=["/bin/sleep", "1000"])
        start = container_service_pb2.StartContainerRequest(
            epoch=EPOCH, container_name=NAME, generation=1, spec=spec, ingress_port=FIRST_PORT
        ).SerializeToString()
        by_name = {each.name: each for each in SERVED}
        assert (await call(to, by_name["StartContainer"], start)).code == "OK"
        given = filter(may_meet, mutants(method.input_type, KNOWN))
        outcomes = [(mutant, await call(to, method, mutant.data, seconds=20)) for mutant in given]
        # The agent checks less than the contract says, so what breaks a rule may be granted here.
        judged = [fault(Mutant(field=m.field, kind=m.kind, data=m.data), outcome, most=MOST) for m, outcome in outcomes]
        assert [each for each in judged if each] == []
        assert (await call(to, by_name["ListContainers"], b"")).code == "OK"
