"""The sandbox app, run as in its container: page, health, WebSocket, and a clean end."""

from __future__ import annotations

import base64
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SERVER = Path(__file__).parents[3] / "examples/app/server.py"
KEY = base64.b64encode(bytes(range(16))).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """A running app."""

    process: subprocess.Popen[str]
    port: int

    def get(self, path: str, method: str = "GET") -> tuple[int, bytes, http.client.HTTPMessage]:
        """Return status, body and headers of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body, answer.headers

    def open_socket(self) -> socket.socket:
        """Return a connection that has become a WebSocket."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        lines = [
            "GET /dev/ws HTTP/1.1",
            "Host: x",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {KEY}",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        assert head.startswith(b"HTTP/1.1 101 ")
        return connection


@pytest.fixture
def app() -> Iterator[App]:
    """Give the app on a free port of the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {"PATH": os.defpath, "APP_NAME": "sandbox-<test>", "APP_COLOUR": "#123456", "PORT": str(port)}
    with subprocess.Popen(
        [sys.executable, "-B", SERVER], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert f"listens on port {port}" in process.stdout.readline()
        yield App(process=process, port=port)
        process.kill()


def masked(kind: int, payload: bytes) -> bytes:
    """Return a client's frame."""
    mask = b"\x01\x02\x03\x04"
    data = bytes(byte ^ mask[number % 4] for number, byte in enumerate(payload))
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return bytes([0x80 | kind]) + length + mask + data


def receive(connection: socket.socket, size: int) -> bytes:
    """Return exactly `size` bytes."""
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        assert chunk
        data += chunk
    return data


@pytest.mark.parametrize("path", ["/", "/dev/", "/dev", "/live?x=1"])
def test_the_page_has_a_prompt_bar_and_its_own_look(app: App, path: str) -> None:
    """Below any prefix the page is there, with the variant's name (escaped) and colour."""
    status, body, headers = app.get(path)
    assert status == 200
    assert b'id="prompt"' in body
    assert b"#123456" in body
    assert b"sandbox-&lt;test&gt;" in body
    assert headers["X-App"] == "sandbox-<test>"


def test_health_and_other_paths(app: App) -> None:
    """`/healthz` is well, HEAD has no body, an unknown path is 404, a plain GET of the WebSocket is told to upgrade."""
    assert app.get("/healthz")[:2] == (200, b"ok\n")
    assert app.get("/dev/healthz", "HEAD")[:2] == (200, b"")
    assert app.get("/missing")[0] == 404
    assert app.get("/ws")[0] == 426


@pytest.mark.parametrize("message", [b"hello", b"x" * 60_000, b""])
def test_the_websocket_sends_back(app: App, message: bytes) -> None:
    """A message comes back as it was sent, and the close is answered."""
    with app.open_socket() as connection:
        connection.sendall(masked(1, message))
        head = 2 if len(message) < 126 else 4
        answer = receive(connection, head + len(message))
        assert answer[0] == 0x81
        assert answer[head:] == message
        connection.sendall(masked(8, b"\x03\xe8"))
        assert receive(connection, 4) == b"\x88\x02\x03\xe8"


@pytest.mark.parametrize(
    ("frame", "code"), [(b"\x81\x01x", 1002), (b"\x81\xff" + b"\xff" * 8, 1009), (b"\x01\x80", 1003)]
)
def test_a_bad_frame_closes_with_its_reason(app: App, frame: bytes, code: int) -> None:
    """An unmasked, a huge and a fragmented message each end the WebSocket with the code the RFC names."""
    with app.open_socket() as connection:
        connection.sendall(frame)
        assert receive(connection, 4) == b"\x88\x02" + code.to_bytes(2, "big")


def test_sigterm_ends_it_cleanly(app: App) -> None:
    """A stop by the container runtime is exit code 0."""
    app.process.send_signal(signal.SIGTERM)
    assert app.process.wait(timeout=60) == 0
