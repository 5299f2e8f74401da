"""A guest that shouts: calls, connections and console output without end cost the host nothing that grows."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor

from cellmesh.api.guest.v1 import agent_service_pb2
from support.arena import Arena
from support.node import SECONDS
from support.raw_calls import call, channel

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="module")]

HELLO, REPORT = agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"].methods
CALLS = 3600
CALLERS = 3
"""At once: fewer than the streams a guest may have, so that each call gets an answer of ours."""
CONNECTIONS = 300
CONSOLE_BYTES = 64 << 10
LOG_BYTES = 1 << 20
"""What one attack may write to the hypervisor's log."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

WORDS = {
    "garbage": b"\xff\x00GARBAGE\r\n" * 100,
    "half a preface": PREFACE[:9],
    "a preface": PREFACE,
    "nothing": b"",
}


@pytest.mark.parametrize("method", [HELLO, REPORT], ids=["Hello", "Report"])
@pytest.mark.parametrize("data", [b"\xff" * 64, b"\x0a\x04ugly"], ids=["no message", "broken rules"])
async def test_refused_calls_leave_a_small_log(arena: Arena, method: MethodDescriptor, data: bytes) -> None:
    """Each is refused with a type; the log and the events tell of them, and not of each."""
    log = arena.it.log.stat().st_size
    async with arena.target() as target, arena.witnessed():
        async with channel(target.agent_socket) as to:

            async def some() -> set[str]:
                return {(await call(to, method, data, seconds=SECONDS)).code for _ in range(CALLS // CALLERS)}

            codes = await asyncio.gather(*(some() for _ in range(CALLERS)))
        assert set().union(*codes) == {"INVALID_ARGUMENT"}
        assert len(await arena.misbehaviour(target)) < 20
    assert arena.it.log.stat().st_size - log < LOG_BYTES


@pytest.mark.parametrize("kind", WORDS)
async def test_connections_that_lead_nowhere_are_borne(arena: Arena, kind: str) -> None:
    """Hundreds of connections that say nonsense, or nothing, and stay: the host goes on, for this VM's agent too."""
    async with arena.target() as target, arena.witnessed():
        with ExitStack() as held:
            for _ in range(CONNECTIONS):
                one = held.enter_context(socket.socket(socket.AF_UNIX))
                one.settimeout(SECONDS)
                one.connect(str(target.agent_socket))
                one.sendall(WORDS[kind])
                await asyncio.sleep(0)
            hello = agent_service_pb2.HelloRequest(boot_id=target.guest.boot_id, protocol_versions=[1])
            async with channel(target.agent_socket) as to:
                assert (await call(to, HELLO, hello.SerializeToString(), seconds=SECONDS)).code == "OK"


async def test_streams_that_say_nothing_are_borne(arena: Arena) -> None:
    """A hundred reports streams that never report wait for their turn, and for nobody else's."""
    async with arena.target() as target, arena.witnessed(), channel(target.agent_socket) as to:
        untyped: Any = to
        report = untyped.stream_stream("/cellmesh.api.guest.v1.AgentService/Report")
        calls = [report(timeout=SECONDS) for _ in range(100)]
        hello = agent_service_pb2.HelloRequest(boot_id=target.guest.boot_id, protocol_versions=[1])
        async with channel(target.agent_socket) as other:
            assert (await call(other, HELLO, hello.SerializeToString(), seconds=SECONDS)).code == "OK"
        for each in calls:
            each.cancel()
        await asyncio.gather(*(each.code() for each in calls))


async def test_a_console_at_full_speed_fills_no_disk(arena: Arena) -> None:
    """Megabytes on the console leave the newest 64 KiB on the host."""
    async with arena.target() as target, arena.witnessed():
        console = target.agent_socket.parent / "console.log"
        for _ in range(200):
            for _ in range(50):
                target.guest.machine.write_console("owned " * 600 + "\n")
            await asyncio.sleep(0)
        assert console.stat().st_size <= CONSOLE_BYTES
