"""The relay between two sockets, with real ones."""

from __future__ import annotations

import hashlib
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cellmesh.guest.vsock import Dial, Relay, dial_unix, listen_unix


@contextmanager
def _relay(near: Path, dial: Dial, limit: int = 128) -> Iterator[None]:
    relay = Relay(listen_unix(str(near)), dial, limit=limit)
    relay.start()
    try:
        yield
    finally:
        relay.close()


@contextmanager
def _pair(tmp_path: Path, limit: int = 128) -> Iterator[tuple[socket.socket, Path]]:
    near, far_path = tmp_path / "near", str(tmp_path / "far")
    with listen_unix(far_path) as far, _relay(near, lambda: dial_unix(far_path), limit):
        yield far, near


def _receive_all(connection: socket.socket) -> bytes:
    received = bytearray()
    while data := connection.recv(1 << 16):
        received += data
    return bytes(received)


def test_bytes_go_both_ways_at_once(tmp_path: Path) -> None:
    """Eight megabytes each way arrive as they were sent."""
    there, back = (hashlib.shake_128(seed).digest(8 << 20) for seed in (b"there", b"back"))
    with _pair(tmp_path) as (far, near), dial_unix(str(near)) as client:
        server, _ = far.accept()
        with server:
            got: dict[str, bytes] = {}

            def serve() -> None:
                sender = threading.Thread(target=lambda: (server.sendall(back), server.shutdown(socket.SHUT_WR)))
                sender.start()
                got["there"] = _receive_all(server)
                sender.join()

            thread = threading.Thread(target=serve)
            thread.start()
            sender = threading.Thread(target=lambda: (client.sendall(there), client.shutdown(socket.SHUT_WR)))
            sender.start()
            got["back"] = _receive_all(client)
            sender.join()
            thread.join()
        assert got == {"there": there, "back": back}


def test_half_a_close_is_half_a_close(tmp_path: Path) -> None:
    """After one side has said all, the other can still answer."""
    with _pair(tmp_path) as (far, near), dial_unix(str(near)) as client:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        server, _ = far.accept()
        with server:
            assert _receive_all(server) == b"question"
            server.sendall(b"answer")
        assert _receive_all(client) == b"answer"


def test_nobody_there_is_a_close(tmp_path: Path) -> None:
    """A connection whose far side does not listen ends, and the next is tried anew."""
    near = tmp_path / "near"
    with _relay(near, lambda: dial_unix(str(tmp_path / "far"))):
        with dial_unix(str(near)) as client:
            assert client.recv(1) == b""
        with listen_unix(str(tmp_path / "far")) as far, dial_unix(str(near)) as client:
            server, _ = far.accept()
            server.close()
            assert client.recv(1) == b""


def test_connections_are_bounded_and_their_places_come_back(tmp_path: Path) -> None:
    """One more than the bound is closed at once; a connection that ends makes room."""
    with _pair(tmp_path, limit=2) as (far, near), ExitStack() as stack:
        held = [stack.enter_context(dial_unix(str(near))) for _ in range(2)]
        served = [stack.enter_context(far.accept()[0]) for _ in held]
        with dial_unix(str(near)) as refused:
            assert refused.recv(1) == b""
        held[0].close()
        # Both were dialled at once, so either may have been accepted first.
        (ended,), _, _ = select.select(served, [], [])
        assert ended.recv(1) == b""
        ended.close()
        welcome = threading.Thread(target=_welcome_all, args=(far,))
        welcome.start()
        try:
            assert any(_is_welcome(near) for _ in range(1000)), "the place of an ended connection never came back"
        finally:
            far.shutdown(socket.SHUT_RDWR)
            welcome.join()


def _welcome_all(far: socket.socket) -> None:
    """Answer every connection until the listener is shut down."""
    while True:
        try:
            server, _ = far.accept()
        except OSError:
            return
        with server:
            server.sendall(b"room")


def _is_welcome(near: Path) -> bool:
    """Tell whether a connection is let through; one that finds no place is closed at once."""
    with dial_unix(str(near)) as client:
        return client.recv(4) == b"room"


def test_only_the_host_is_let_in(tmp_path: Path) -> None:
    """A peer whose context id is not the expected one is closed unheard."""
    dialled: list[str] = []

    def dial() -> socket.socket:
        dialled.append("far")
        raise ConnectionRefusedError

    relay = Relay(listen_unix(str(tmp_path / "near")), dial, peer_cid=2)
    relay.start()
    try:
        with dial_unix(str(tmp_path / "near")) as client:
            assert client.recv(1) == b""
    finally:
        relay.close()
    assert dialled == []
    assert relay._admits((2, 1234))
    assert not relay._admits((3, 1234))


def test_the_socket_is_ours_alone(tmp_path: Path) -> None:
    """A stale socket is replaced, and nobody else may connect to the new one."""
    listen_unix(str(tmp_path / "near")).close()
    with listen_unix(str(tmp_path / "near")):
        assert (tmp_path / "near").stat().st_mode & 0o777 == 0o600
