"""A guest that shouts: calls, connections and console output without end cost the host nothing that grows."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack, suppress
from typing import Any

import psutil
import pytest
from google.protobuf.descriptor import MethodDescriptor

from cellmesh.api.guest.v1 import agent_service_pb2
from support.arena import Arena
from support.node import SECONDS
from support.raw_calls import call, channel

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="module")]

HELLO, REPORT = agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"].methods
CALLS = 360
"""As many as the acceptor lets through at once; of more, a dozen a second."""
CALLERS = 3
"""At once: fewer than the streams a guest may have, so that each call gets an answer of ours."""
CONNECTIONS = 300
DESCRIPTORS = 32
"""How many more the hypervisor may have open meanwhile: three for each connection it admits, and those of its own."""
CONSOLE_BYTES = 64 << 10
LINES = 60
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
    async with arena.target() as target, arena.witnessed():
        async with channel(target.agent_socket) as to:

            async def some() -> set[str]:
                return {(await call(to, method, data, seconds=SECONDS)).code for _ in range(CALLS // CALLERS)}

            codes = await asyncio.gather(*(some() for _ in range(CALLERS)))
        assert set().union(*codes) == {"INVALID_ARGUMENT"}
        assert len(await arena.misbehaviour(target)) < 20
        assert arena.it.log.read_text().count(f'"vm_id": "{target.vm.vm_id}"') < LINES


async def test_connections_that_lead_nowhere_are_borne(arena: Arena) -> None:
    """Hundreds of connections that say nonsense, or nothing, and stay, cost no descriptors, and the agent gets in."""
    assert arena.it.process is not None
    process = psutil.Process(arena.it.process.pid)
    async with arena.target() as target, arena.witnessed():
        before = process.num_fds()
        with ExitStack() as held:
            for _ in range(CONNECTIONS):
                for words in WORDS.values():
                    one = held.enter_context(socket.socket(socket.AF_UNIX))
                    one.setblocking(False)
                    # The queue is full, or the connection closed already.
                    with suppress(BlockingIOError, ConnectionError):
                        one.connect(str(target.agent_socket))
                        one.sendall(words)
                    await asyncio.sleep(0)
                assert process.num_fds() <= before + DESCRIPTORS
            hello = agent_service_pb2.HelloRequest(boot_id=target.guest.boot_id, protocol_versions=[1])
            async with channel(target.agent_socket) as to, asyncio.timeout(SECONDS):
                said = hello.SerializeToString()
                while (await call(to, HELLO, said, seconds=SECONDS)).code != "OK":  # noqa: ASYNC110  # it is refused
                    await asyncio.sleep(0.1)
            assert process.num_fds() <= before + DESCRIPTORS


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
