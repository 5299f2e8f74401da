"""The suite's own small client: HTTP over a unix socket, and the hybrid vsock's line."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance import openapi

DEADLINE_SECONDS = 120.0
_CHUNK = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the API said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        """The body as JSON, None for an empty one."""
        return json.loads(self.body) if self.body else None


class Api:
    """One API socket; every exchange is held against the OpenAPI document."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, action: str) -> Answer:
        """Send a GET."""
        return self.exchange("GET", action, None)

    def put(self, action: str, body: Any = None) -> Answer:
        """Send a PUT."""
        return self.exchange("PUT", action, body)

    def exchange(self, method: str, action: str, body: Any) -> Answer:
        """Send a documented request and check the answer; raises UndocumentedError."""
        openapi.check_request(method, action, body)
        answer = self.send(method, action, b"" if body is None else json.dumps(body).encode())
        openapi.check_answer(method, action, answer.status, answer.body)
        return answer

    def send(self, method: str, action: str, body: bytes = b"") -> Answer:
        """Send anything at all."""
        with socket.socket(socket.AF_UNIX) as end:
            end.settimeout(DEADLINE_SECONDS)
            end.connect(str(self.path))
            head = f"{method} /api/v1/{action} HTTP/1.1\r\nHost: localhost\r\n"
            if body:
                head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            end.sendall(head.encode() + b"\r\n" + body)
            return _read_answer(end)


class VsockStream:
    """One connection through the hybrid vsock."""

    def __init__(self, path: Path) -> None:
        self.end = socket.socket(socket.AF_UNIX)
        self.end.settimeout(DEADLINE_SECONDS)
        try:
            self.end.connect(str(path))
        except OSError:
            self.end.close()
            raise

    def __enter__(self) -> VsockStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.end.close()

    @classmethod
    def connect(cls, path: Path, port: int) -> VsockStream:
        """Connect to a port of the guest; raises ConnectionRefusedError when nothing takes the connection."""
        stream = cls(path)
        try:
            stream.end.sendall(b"CONNECT %d\n" % port)
            line = stream.read_line()
        except OSError:
            stream.end.close()
            raise
        if not line.startswith(b"OK "):
            stream.end.close()
            raise ConnectionRefusedError(line)
        return stream

    def read_line(self) -> bytes:
        """Read to a newline, or to the end."""
        line = b""
        while not line.endswith(b"\n"):
            octet = self.end.recv(1)
            if not octet:
                break
            line += octet
        return line

    def read_all(self) -> bytes:
        """Read to the end; a reset is an end."""
        parts = []
        try:
            while part := self.end.recv(_CHUNK):
                parts.append(part)
        except ConnectionResetError:
            return b"".join(parts)
        return b"".join(parts)


def eventually(condition: Callable[[], Any], *, within: float = DEADLINE_SECONDS) -> Any:
    """Return the first true result; raises TimeoutError."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise TimeoutError(f"not within {within} s")


def _read_answer(end: socket.socket) -> Answer:
    reader = end.makefile("rb")
    status = int(reader.readline().split()[1])
    headers = {}
    while (line := reader.readline().rstrip()) != b"":
        name, _, value = line.decode().partition(":")
        headers[name.strip().lower()] = value.strip()
    return Answer(status=status, headers=headers, body=reader.read(int(headers.get("content-length", 0))))
