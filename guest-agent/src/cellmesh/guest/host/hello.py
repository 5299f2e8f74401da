"""Saying Hello until the host answers."""

from __future__ import annotations

import asyncio
import os

import grpc.aio

from cellmesh.api.guest.v1 import agent_service_pb2, agent_service_pb2_grpc
from cellmesh.guest import AGENT_VERSION, PROTOCOL_VERSIONS, machine
from cellmesh.guest.boot import say
from cellmesh.guest.host.channel import jittered
from cellmesh.guest.identity import Assignment

_DEADLINE = 5.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_FASTEST_HEARTBEAT = 0.1
_DEFAULT_HEARTBEAT = 5.0


async def say_hello(stub: agent_service_pb2_grpc.AgentServiceAsyncStub, boot_id: str) -> Assignment:
    """Say Hello until there is an answer, for ever if need be, and set the clock by it."""
    request = agent_service_pb2.HelloRequest(
        boot_id=boot_id,
        agent_version=AGENT_VERSION,
        kernel_release=os.uname().release,
        protocol_versions=PROTOCOL_VERSIONS,
    )
    pause = _FIRST_PAUSE
    while True:
        try:
            answer = await stub.Hello(request, timeout=_DEADLINE)
            break
        except grpc.aio.AioRpcError as error:
            say(f"Hello was not answered: {error.code().name} {error.details()}")
        await asyncio.sleep(jittered(pause))
        pause = min(pause * 2, _LONGEST_PAUSE)
    if answer.HasField("time"):
        _set_clock(answer.time.seconds + answer.time.nanos / 1e9)
    interval = answer.heartbeat_interval.seconds + answer.heartbeat_interval.nanos / 1e9
    return Assignment(
        vm_id=answer.vm_id,
        epoch=answer.epoch,
        discard_layers=answer.discard_layers,
        heartbeat_interval=max(interval or _DEFAULT_HEARTBEAT, _FASTEST_HEARTBEAT),
    )


def _set_clock(seconds: float) -> None:
    try:
        machine.set_clock(seconds)
    except OSError as error:
        say(f"the clock could not be set: {error}")
