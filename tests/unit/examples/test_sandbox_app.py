"""The sandbox app, run as in its container: pages, transfers, events, WebSocket, and a clean end."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
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

    def get(
        self, path: str, method: str = "GET", body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        """Return status, body and headers of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body=body, headers=headers or {})  # type: ignore[arg-type]
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
    # It takes a port itself: one that was looked for could be somebody else's by the time it listens.
    environment = {"PATH": os.defpath, "APP_NAME": "sandbox-<test>", "APP_COLOUR": "#123456", "PORT": "0"}
    with subprocess.Popen(
        [sys.executable, "-B", SERVER], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said, _, port = process.stdout.readline().rpartition(" ")
        assert said.endswith("listens on port")
        yield App(process=process, port=int(port))
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


def test_whoami_says_how_the_request_arrived_and_no_credential(app: App) -> None:
    """Container and prefix are told; of headers only the names, as the values may be credentials."""
    headers = {"X-Forwarded-Prefix": "/dev", "Cookie": "secret=1", "Authorization": "Bearer secret"}
    status, body, _ = app.get("/whoami?x", headers=headers)
    answer = json.loads(body)
    assert status == 200
    assert (answer["container"], answer["prefix"], answer["path"]) == ("sandbox-<test>", "/dev", "/whoami?x")
    assert {"cookie", "authorization"} <= set(answer["headers"])
    assert b"secret" not in body


@pytest.mark.parametrize("size", [0, 1, 65_536, 300_001])
def test_a_download_has_the_size_and_bytes_that_were_asked_for(app: App, size: int) -> None:
    """Each byte is its offset modulo 256, and HEAD says the length without them."""
    status, body, headers = app.get(f"/dev/download?size={size}")
    assert (status, headers["Content-Length"]) == (200, str(size))
    assert body == (bytes(range(256)) * (size // 256 + 1))[:size]
    assert app.get(f"/download?size={size}", "HEAD")[2]["Content-Length"] == str(size)


@pytest.mark.parametrize(
    "path", ["/download?size=x", "/download?size=-1", "/download?size=1" + "0" * 18, "/events?count=y"]
)
def test_a_number_that_is_none_is_refused(app: App, path: str) -> None:
    """A size or count that can't be read or is beyond all bounds is 400, not a guess."""
    assert app.get(path)[0] == 400


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_is_counted_and_hashed(app: App, method: str, chunked: bool) -> None:
    """Whether its length is told before or it comes in chunks, the whole body is counted and hashed."""
    data = os.urandom(200_000)
    pieces = (data[start : start + 70_000] for start in range(0, len(data), 70_000))
    status, answer, _ = app.get("/upload", method, body=pieces if chunked else data)
    expected = {"container": "sandbox-<test>", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert (status, json.loads(answer)) == (200, expected)


@pytest.mark.parametrize("body", ["zz\r\n", "5\r\nabcdefgh\r\n0\r\n\r\n", "5\r\nab"])
def test_a_malformed_body_is_refused(app: App, body: str) -> None:
    """Chunks without a size, longer than they say, or cut off are 400, and the connection ends."""
    with socket.create_connection(("127.0.0.1", app.port), timeout=30) as connection:
        head = "POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall((head + body).encode())
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_a_post_elsewhere_is_missing_and_ends_the_connection(app: App) -> None:
    """A body that nobody reads is not taken for the next request."""
    status, _, headers = app.get("/nowhere", "POST", body=b"GET / HTTP/1.1\r\n\r\n")
    assert (status, headers["Connection"]) == (404, "close")


def test_events_come_one_by_one_and_end(app: App) -> None:
    """Server-sent events have an id, a kind and a JSON text each; `count` ends them."""
    status, body, headers = app.get("/dev/events?count=3&every=1")
    assert (status, headers["Content-Type"]) == (200, "text/event-stream")
    events = [dict(line.split(": ", 1) for line in event.splitlines()) for event in body.decode().split("\n\n")[:-1]]
    assert [(event["id"], event["event"]) for event in events] == [("0", "tick"), ("1", "tick"), ("2", "tick")]
    assert json.loads(events[2]["data"]) == {"container": "sandbox-<test>", "number": 2}


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
