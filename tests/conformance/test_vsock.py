"""The hybrid vsock: its line, its ends, and every byte in order."""

from __future__ import annotations

import socket
import threading

import pytest

from conformance.client import VsockStream
from conformance.pattern import pattern
from conformance.vm import COMMAND_PORT, EARLY_PORT, Vm

BULK = 10_000_000


def test_port_without_a_listener_is_closed(lasting: Vm) -> None:
    """A port nobody listens on is an end of file without a word."""
    with pytest.raises(ConnectionRefusedError, match="b''"):
        VsockStream.connect(lasting.vsock, 4999)


@pytest.mark.parametrize("pieces", [[b"CONNECT 5001\n"], [b"CON", b"NECT 50", b"01", b"\n"], [b"connect 5001\n"]])
def test_line_may_come_in_pieces(lasting: Vm, pieces: list[bytes]) -> None:
    """The opening line is read to its newline, in any case and however it is cut."""
    with VsockStream(lasting.vsock) as stream:
        for piece in pieces:
            stream.end.sendall(piece)
        word, port = stream.read_line().split()
        assert word == b"OK"
        assert int(port) >= 1 << 30
        assert stream.read_line() == b"early bytes\n"


@pytest.mark.parametrize("line", [b"HELLO 5001\n", b"CONNECT nowhere\n", b"CONNECT " + b"1" * 40 + b"\n", b"\n"])
def test_wrong_line_is_closed(lasting: Vm, line: bytes) -> None:
    """Anything but the line is an end without an answer, and the next connection works."""
    with VsockStream(lasting.vsock) as stream:
        stream.end.sendall(line)
        assert stream.read_all() == b""
    assert lasting.command("boot-id")


def test_hanging_up_within_the_line_harms_nobody(lasting: Vm) -> None:
    """A client that leaves in the middle of its line is forgotten."""
    for _ in range(20):
        with VsockStream(lasting.vsock) as stream:
            stream.end.sendall(b"CONN")
    assert lasting.command("boot-id")


def test_hanging_up_before_the_answer_harms_nobody(lasting: Vm) -> None:
    """A client that does not wait for the guest to accept is forgotten."""
    for _ in range(20):
        with VsockStream(lasting.vsock) as stream:
            stream.end.sendall(b"CONNECT 5001\n")
    assert lasting.command("boot-id")


def test_bytes_behind_the_line_reach_the_guest(lasting: Vm) -> None:
    """What is sent together with the line is the stream's beginning."""
    with VsockStream(lasting.vsock) as stream:
        stream.end.sendall(b"CONNECT 5000\nboot-id\n")
        assert stream.read_line().startswith(b"OK ")
        assert len(stream.read_line()) == 37


def test_guest_may_speak_first(lasting: Vm) -> None:
    """Bytes of the guest may lie in the same read as the OK: a client must keep what it read too much."""
    with VsockStream.connect(lasting.vsock, EARLY_PORT) as stream:
        assert stream.read_line() == b"early bytes\n"


def test_half_close_travels_to_the_guest(lasting: Vm) -> None:
    """The guest sees the end of the input and still answers: v53's half-close."""
    with VsockStream.connect(lasting.vsock, COMMAND_PORT) as stream:
        stream.end.sendall(b"count\n" + pattern(100))
        stream.end.shutdown(socket.SHUT_WR)
        assert stream.read_all() == b"100 0\n"


def test_half_close_travels_to_the_host(lasting: Vm) -> None:
    """The host sees the end of what the guest sends, and its answer still arrives."""
    with lasting.listening(7000) as listener, VsockStream.connect(lasting.vsock, COMMAND_PORT) as stream:
        stream.end.sendall(b"dial 7000 1000\n")
        host, _address = listener.accept()
        with host:
            assert _read_all(host) == pattern(1000)
            host.sendall(b"thanks")
        assert stream.read_all() == b"thanks"


def test_guest_dials_nobody(lasting: Vm) -> None:
    """Without a listener's socket the guest is refused."""
    assert lasting.command("dial 7001 0") == b"refused\n"


def test_guest_dials_a_stale_socket(lasting: Vm) -> None:
    """A socket file without a listener refuses the guest too."""
    lasting.listening(7002).close()
    assert lasting.command("dial 7002 0") == b"refused\n"


def test_bulk_to_the_host_is_exact(lasting: Vm) -> None:
    """10 MB from the guest arrive as they were sent."""
    assert lasting.command(f"send {BULK}") == pattern(BULK)


def test_bulk_to_the_guest_is_exact(lasting: Vm) -> None:
    """10 MB to the guest arrive as they were sent."""
    with VsockStream.connect(lasting.vsock, COMMAND_PORT) as stream:
        stream.end.sendall(b"count\n" + pattern(BULK))
        stream.end.shutdown(socket.SHUT_WR)
        assert stream.read_all() == f"{BULK} 0\n".encode()


def test_bulk_both_ways_at_once_is_exact(lasting: Vm) -> None:
    """10 MB echoed while they are being sent: neither direction waits for the other."""
    with VsockStream.connect(lasting.vsock, COMMAND_PORT) as stream:
        stream.end.sendall(b"echo\n")
        sending = threading.Thread(target=_send_and_end, args=(stream.end, pattern(BULK)))
        sending.start()
        echoed = stream.read_all()
        sending.join()
    assert echoed == pattern(BULK)


def test_slow_reader_loses_nothing(lasting: Vm) -> None:
    """A host that does not read makes the guest wait; another connection goes on meanwhile."""
    with VsockStream.connect(lasting.vsock, COMMAND_PORT) as slow:
        slow.end.sendall(b"send 3000000\n")
        assert lasting.command("send 1000000") == pattern(1_000_000)
        assert slow.read_all() == pattern(3_000_000)


def test_two_hundred_connections_live_together(lasting: Vm) -> None:
    """Each of many connections has its own bytes."""
    streams = [VsockStream.connect(lasting.vsock, EARLY_PORT) for _ in range(200)]
    for number, stream in enumerate(streams):
        assert stream.read_line() == b"early bytes\n"
        stream.end.sendall(b"%d\n" % number)
    assert [int(stream.read_line()) for stream in streams] == list(range(200))
    for stream in streams:
        stream.end.close()
    assert lasting.command("boot-id")


def test_host_ports_differ(lasting: Vm) -> None:
    """The number after OK is the connection's own."""
    ports = set()
    for _ in range(3):
        with VsockStream(lasting.vsock) as stream:
            stream.end.sendall(b"CONNECT 5001\n")
            ports.add(stream.read_line())
    assert len(ports) == 3


def _send_and_end(end: socket.socket, data: bytes) -> None:
    end.sendall(data)
    end.shutdown(socket.SHUT_WR)


def _read_all(end: socket.socket) -> bytes:
    end.settimeout(60)
    data = b""
    while part := end.recv(65536):
        data += part
    return data
