"""The relay between two sockets, with real ones."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cellmesh.guest.relay import Dial, Patience, Relay, no_patience
from cellmesh.guest.vsock import dial_unix, listen_unix


@contextmanager
def _relay(
    near: Path, dial: Dial, limit: int = 128, patience: Patience = no_patience, refusal: bytes = b""
) -> Iterator[None]:
    relay = Relay(listen_unix(str(near)), dial, limit=limit, patience=patience, refusal=refusal)
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


def test_caller_waits_for_a_far_side_that_is_about_to_listen(tmp_path: Path) -> None:
    """With patience a refusal is dialled again, and what the caller said meanwhile arrives."""
    refusals = 0

    def dial() -> socket.socket:
        nonlocal refusals
        try:
            return dial_unix(str(tmp_path / "far"))
        except OSError as error:
            refusals += 1
            raise ConnectionRefusedError(errno.ECONNREFUSED, "not yet") from error

    with _relay(tmp_path / "near", dial, patience=lambda: 60.0), dial_unix(str(tmp_path / "near")) as client:
        client.sendall(b"early")
        client.shutdown(socket.SHUT_WR)
        until = time.monotonic() + 30
        while refusals < 3:
            assert time.monotonic() < until
            time.sleep(0.01)
        with listen_unix(str(tmp_path / "far")) as far, far.accept()[0] as server:
            assert _receive_all(server) == b"early"


def test_port_that_refuses_at_its_leisure_is_dialled_again(tmp_path: Path) -> None:
    """A refusal that comes after the dial began counts as one: a TCP port that is closed, then open."""
    far = socket.socket()
    # Bound and not listened on, it refuses and is nobody else's: not even of a dial, which may be given any port.
    far.bind(("127.0.0.1", 0))

    def dial() -> socket.socket:
        connection = socket.socket()
        connection.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            connection.connect(far.getsockname())
        return connection

    near = tmp_path / "near"
    with far, _relay(near, dial, patience=lambda: 60.0), dial_unix(str(near)) as client:
        client.sendall(b"early")
        assert not select.select([client], [], [], 0.2)[0], "it was given up, or answered by nobody"
        far.listen()
        with far.accept()[0] as server:
            assert server.recv(5) == b"early"
            server.sendall(b"late")
            assert client.recv(4) == b"late"


def test_another_address_is_dialled_at_once_when_one_refuses(tmp_path: Path) -> None:
    """Without any patience a caller reaches a far side that listens at its second address only."""
    order: list[str] = []

    def dial(name: str) -> socket.socket:
        order.append(name)
        try:
            return dial_unix(str(tmp_path / name))
        except OSError as error:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nothing listens") from error

    dials = [functools.partial(dial, name) for name in ("first", "second")]
    relay = Relay(listen_unix(str(tmp_path / "near")), *dials)
    relay.start()
    try:
        for listening, tried in (("second", ["first", "second"]), ("first", ["first"])):
            order.clear()
            with listen_unix(str(tmp_path / listening)) as far, dial_unix(str(tmp_path / "near")) as client:
                server, _ = far.accept()
                with server:
                    client.sendall(b"question")
                    assert server.recv(8) == b"question"
            assert order == tried
    finally:
        relay.close()


def test_an_address_of_a_family_the_kernel_lacks_ends_no_wait(tmp_path: Path) -> None:
    """The second address fails as where there is no IPv6; the first one is dialled on until it answers."""

    def first() -> socket.socket:
        try:
            return dial_unix(str(tmp_path / "far"))
        except OSError as error:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "not yet") from error

    missed = threading.Semaphore(0)

    def second() -> socket.socket:
        missed.release()
        raise OSError(errno.EAFNOSUPPORT, "no such family")

    relay = Relay(listen_unix(str(tmp_path / "near")), first, second, patience=lambda: 60.0)
    relay.start()
    try:
        with dial_unix(str(tmp_path / "near")) as client:
            for _ in range(2):
                assert missed.acquire(timeout=30)
            with listen_unix(str(tmp_path / "far")) as far, far.accept()[0] as server:
                server.sendall(b"late")
                assert client.recv(4) == b"late"
    finally:
        relay.close()


def test_dial_that_met_itself_is_dialled_again(tmp_path: Path) -> None:
    """A dial may be given the port it dials for, if nobody listens there: no caller is answered with its own words."""
    dialled = 0

    def dial() -> socket.socket:
        nonlocal dialled
        dialled += 1
        if dialled > 3:
            return dial_unix(str(tmp_path / "far"))
        connection = socket.socket()
        connection.bind(("127.0.0.1", 0))
        connection.connect(connection.getsockname())
        return connection

    near, far_path = tmp_path / "near", str(tmp_path / "far")
    with (
        listen_unix(far_path) as far,
        _relay(near, dial, patience=lambda: 60.0),
        dial_unix(str(near)) as client,
    ):
        client.sendall(b"early")
        with far.accept()[0] as server:
            assert server.recv(5) == b"early"
            server.sendall(b"late")
            assert client.recv(5) == b"late"
    assert dialled == 4


def test_patience_ends(tmp_path: Path) -> None:
    """Who is refused to the end is closed, however often it was dialled for; who waits counts and is closed too."""

    def dial() -> socket.socket:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "never")

    near = tmp_path / "near"
    with _relay(near, dial, patience=lambda: 0.2, refusal=b"nobody"), dial_unix(str(near)) as client:
        assert client.recv(64) == b"nobody"
        assert client.recv(1) == b""
    with ExitStack() as stack:
        with _relay(near, dial, limit=2, patience=lambda: 3600.0):
            waiting = [stack.enter_context(dial_unix(str(near))) for _ in range(2)]
            with dial_unix(str(near)) as refused:
                assert refused.recv(1) == b""
            assert not select.select(waiting, [], [], 0)[0]
        assert [client.recv(1) for client in waiting] == [b"", b""]


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


def test_an_early_answer_arrives_although_the_question_is_not_heard_to_its_end(tmp_path: Path) -> None:
    """A server that answers and closes while the client still sends is heard to its last byte."""
    answer = hashlib.shake_128(b"answer").digest(1 << 20)
    with _pair(tmp_path) as (far, near), dial_unix(str(near)) as client:
        server, _ = far.accept()

        def refuse() -> None:
            with server:
                server.sendall(answer)

        thread = threading.Thread(target=refuse)
        thread.start()
        client.settimeout(0)
        question = bytearray()
        while select.select([client], [client], [])[1] and len(question) < 8 << 20:
            try:
                client.send(bytes(1 << 16))
            except (BlockingIOError, BrokenPipeError):
                break
            question += bytes(1 << 16)
        client.settimeout(None)
        # What was said and not heard may end the connection as a reset, but not before its last byte.
        heard = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(1 << 16):
                heard += data
        assert heard == answer
        thread.join()


def test_a_side_that_does_not_read_holds_up_only_its_own_connection(tmp_path: Path) -> None:
    """What one connection's server does not take waits with its sender, and another's bytes pass meanwhile."""
    with _pair(tmp_path) as (far, near), ExitStack() as stack:
        stuck = stack.enter_context(dial_unix(str(near)))
        deaf = stack.enter_context(far.accept()[0])
        other = stack.enter_context(dial_unix(str(near)))
        speaking = stack.enter_context(far.accept()[0])
        stuck.settimeout(0)
        sent = 0
        while select.select([], [stuck], [], 0.5)[1]:
            sent += stuck.send(bytes(1 << 16))
        other.sendall(b"heard")
        assert speaking.recv(5) == b"heard"
        stuck.shutdown(socket.SHUT_WR)
        assert len(_receive_all(deaf)) == sent


def test_an_end_that_hung_up_wakes_nobody(tmp_path: Path) -> None:
    """While one side is closed and the other is silent, the relay sleeps."""
    relay = Relay(listen_unix(str(tmp_path / "near")), lambda: dial_unix(str(tmp_path / "far")))
    with listen_unix(str(tmp_path / "far")) as far:
        relay.start()
        try:
            with dial_unix(str(tmp_path / "near")) as client:
                far.accept()[0].close()
                assert client.recv(1) == b""
                # What is ready is ready for every caller until it is dealt with, and this never could be.
                deadline = time.monotonic() + 20
                while relay._epoll.poll(0):
                    assert time.monotonic() < deadline
        finally:
            relay.close()
