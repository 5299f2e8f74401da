"""The bridge as its own process: it carries every byte, keeps each half-close, and stays small whatever it carries."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from cellmesh.hypervisor.bridge.client import BridgeClient
from cellmesh.hypervisor.bridge.main import CONNECTIONS
from support import hybrid
from support.bridge import (
    MIB,
    PORT,
    dial,
    holding,
    noise,
    occupied,
    read_all,
    resident,
    until,
    until_open,
)

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="a bridge lowers itself to another uid, which needs root")


def test_fifty_megabytes_pass_both_ways_at_once_unchanged(directory: Path, bridge: object) -> None:
    """Prove that the bridge carries bytes exactly, in both directions at the same time."""
    there, back = noise(1, 50 * MIB), noise(2, 50 * MIB)
    seen: list[bytes] = []

    def guest(connection: socket.socket) -> None:
        writer = threading.Thread(target=connection.sendall, args=(back,))
        writer.start()
        seen.append(hashlib.sha256(read_all(connection)).digest())
        writer.join()

    with hybrid.serve(directory / "vsock.sock", {PORT: guest}), dial(directory) as connection:
        reader = threading.Thread(target=lambda: seen.append(hashlib.sha256(read_all(connection)).digest()))
        reader.start()
        connection.sendall(there)
        connection.shutdown(socket.SHUT_WR)
        reader.join()
    assert set(seen) == {hashlib.sha256(there).digest(), hashlib.sha256(back).digest()}


def test_the_guest_may_answer_after_the_host_ended_its_half(directory: Path, bridge: object) -> None:
    """Prove that a half-close towards the guest leaves the other direction open."""
    with (
        hybrid.serve(directory / "vsock.sock", {PORT: lambda c: c.sendall(b"got " + read_all(c))}),
        dial(directory) as connection,
    ):
        connection.sendall(b"question")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b"got question"


def test_the_host_may_speak_after_the_guest_ended_its_half(directory: Path, bridge: object) -> None:
    """Prove that a half-close from the guest leaves the other direction open."""
    heard: list[bytes] = []
    done = threading.Event()

    def guest(connection: socket.socket) -> None:
        connection.sendall(b"last word")
        connection.shutdown(socket.SHUT_WR)
        heard.append(read_all(connection))
        done.set()

    with hybrid.serve(directory / "vsock.sock", {PORT: guest}), dial(directory) as connection:
        assert read_all(connection) == b"last word"
        connection.sendall(b"still here")
        connection.shutdown(socket.SHUT_WR)
        assert done.wait(60)
    assert heard == [b"still here"]


def test_bytes_sent_with_the_handshake_are_not_lost(directory: Path, bridge: object) -> None:
    """Prove that a guest's first bytes, in one packet with OK, reach the host."""
    with (
        hybrid.serve(directory / "vsock.sock", {PORT: lambda c: c.sendall(b" then more")}, together=b"early"),
        dial(directory) as connection,
    ):
        assert read_all(connection) == b"early then more"


@pytest.mark.asyncio
async def test_a_port_without_a_listener_ends_the_connection(directory: Path, bridge: tuple[BridgeClient, int]) -> None:
    """Prove that a refused CONNECT is an end for the caller and a count in the statistics."""
    with hybrid.serve(directory / "vsock.sock", {}), dial(directory) as connection:
        assert await asyncio.to_thread(connection.recv, 1) == b""
    stats = await bridge[0].stats()
    assert (stats["failed"], stats["connections"]) == (1, 1)


def test_a_vmm_that_never_answers_connect_is_given_up(directory: Path, bridge: object) -> None:
    """Prove that a hung handshake ends by the bridge's own timeout and not by the caller's patience."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(directory / "vsock.sock"))
        (directory / "vsock.sock").chmod(0o666)
        silent.listen()
        with dial(directory) as connection:
            assert connection.recv(1) == b""


@pytest.mark.asyncio
async def test_a_slow_reader_stops_the_sender_and_costs_no_memory(
    directory: Path, bridge: tuple[BridgeClient, int]
) -> None:
    """Prove that unread bytes push back to their sender instead of piling up in the bridge."""
    release = threading.Event()
    with hybrid.serve(directory / "vsock.sock", {PORT: holding(release)}), dial(directory) as caller:
        before = resident(bridge[1])
        caller.setblocking(False)
        sent = 0
        quiet_since = time.monotonic()
        while time.monotonic() < quiet_since + 1:
            try:
                sent += caller.send(b"x" * 65536)
                quiet_since = time.monotonic()
            except BlockingIOError:
                await asyncio.sleep(0.01)
            assert sent < 16 * MIB
        assert resident(bridge[1]) - before < 4 * MIB
        release.set()


@pytest.mark.asyncio
async def test_connections_beyond_the_limit_are_closed_at_once(
    directory: Path, bridge: tuple[BridgeClient, int]
) -> None:
    """Prove that one VM cannot make its bridge grow without end, and that a freed place is taken again."""
    client, pid = bridge
    release = threading.Event()
    with hybrid.serve(directory / "vsock.sock", {PORT: holding(release, b"in")}):
        async with occupied(directory, CONNECTIONS):
            with dial(directory) as extra:
                assert await asyncio.to_thread(extra.recv, 1) == b""
            assert (await client.stats())["refused"] == 1
            release.set()
        await until_open(client, 0)
        with dial(directory) as again:
            assert await asyncio.to_thread(again.recv, 2) == b"in"
    await until(lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) < 20)
