"""A sandbox app that shows what HTTP can carry: a page with a prompt bar, a WebSocket, uploads, downloads, events.

Settings, all from the environment: APP_NAME and APP_COLOUR tell variants apart, PORT is where it listens, 0 anywhere.
Paths count by their last part, so the app can be served below any prefix:

    /                  the page
    /healthz           `ok`
    /whoami            JSON: which container this is, and how the request arrived; names of headers, never their values
    /ws                a WebSocket that sends back what it gets
    /download?size=N   N bytes, each its offset modulo 256
    /upload            (POST, PUT) JSON: how many bytes arrived, and their SHA-256
    /events            server-sent events, one a second; `count=N` ends it, `every=MS` is the time between two
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from string import Template
from urllib.parse import parse_qs, urlsplit

import body
import websocket

NAME = os.environ.get("APP_NAME", "sandbox")
COLOUR = os.environ.get("APP_COLOUR", "#335577")
PORT = int(os.environ.get("PORT", "8080"))
IDLE_SECONDS = 300
TEXT, HTML, JSON = "text/plain; charset=utf-8", "text/html; charset=utf-8", "application/json"


class Server(ThreadingHTTPServer):
    """A thread for each connection."""

    daemon_threads = True
    request_queue_size = 256


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server_version = "sandbox"
    sys_version = ""
    timeout = IDLE_SECONDS
    # Head and body of an answer are two writes; the second must not wait for the first to be acknowledged.
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Answer until one side has had enough."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError) as error:
            self.log_message("the connection ended: %s", type(error).__name__)

    def do_GET(self) -> None:
        """Answer by the last part of the path."""
        pages = {
            "healthz": lambda: self._send(HTTPStatus.OK, TEXT, b"ok\n"),
            "whoami": self._whoami,
            "ws": self._upgrade,
            "download": self._download,
            "events": self._events,
            **dict.fromkeys(("", "dev", "live"), lambda: self._send(HTTPStatus.OK, HTML, page())),
        }
        pages.get(self._last(), self._missing)()

    do_HEAD = do_GET  # noqa: N815 - the names are the base class's

    def do_POST(self) -> None:
        """Take an upload."""
        if self._last() == "upload":
            self._upload()
        else:
            # Its body stays unread.
            self.close_connection = True
            self._missing()

    do_PUT = do_POST  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Write one line per request to standard output."""
        sys.stdout.write(f"{NAME} {format % args}\n")
        sys.stdout.flush()

    def _last(self) -> str:
        return urlsplit(self.path).path.rstrip("/").rpartition("/")[2]

    def _number(self, name: str, default: int) -> int:
        """Return a number of the query, or -1 if it is none."""
        text = parse_qs(urlsplit(self.path).query).get(name, [str(default)])[-1]
        return int(text) if text.isdecimal() and len(text) < 20 else -1

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self._head(status, kind, ("Content-Length", str(len(content))))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _head(self, status: HTTPStatus, kind: str, *more: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Cache-Control", "no-store"), ("X-App", NAME), *more):
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _refuse(self, message: str) -> None:
        self._send(HTTPStatus.BAD_REQUEST, TEXT, f"{message}\n".encode())

    def _missing(self) -> None:
        self._send(HTTPStatus.NOT_FOUND, TEXT, b"There is no such page.\n")

    def _whoami(self) -> None:
        answer = {
            "container": NAME,
            "hostname": socket.gethostname(),
            "method": self.command,
            "path": self.path,
            "prefix": self.headers.get("X-Forwarded-Prefix", ""),
            "headers": sorted({name.lower() for name in self.headers}),
        }
        self._send(HTTPStatus.OK, JSON, json.dumps(answer).encode())

    def _download(self) -> None:
        size = self._number("size", 1 << 20)
        if not 0 <= size <= body.LARGEST:
            self._refuse(f"`size` is a number of bytes, at most {body.LARGEST}.")
            return
        name = f'attachment; filename="{size}.bin"'
        self._head(
            HTTPStatus.OK, "application/octet-stream", ("Content-Length", str(size)), ("Content-Disposition", name)
        )
        if self.command != "HEAD":
            for piece in body.pattern(size):
                self.wfile.write(piece)

    def _upload(self) -> None:
        digest, count = hashlib.sha256(), 0
        try:
            for piece in body.received(self.headers, self.rfile):
                digest.update(piece)
                count += len(piece)
        except body.Malformed as error:
            self.close_connection = True
            self._refuse(f"The body can't be read: {error}.")
            return
        answer = {"container": NAME, "bytes": count, "sha256": digest.hexdigest()}
        self._send(HTTPStatus.OK, JSON, json.dumps(answer).encode())

    def _events(self) -> None:
        count, every = self._number("count", sys.maxsize), self._number("every", 1000)
        if count < 0 or every < 0:
            self._refuse("`count` and `every` (milliseconds) are numbers.")
            return
        self._head(HTTPStatus.OK, "text/event-stream", ("Transfer-Encoding", "chunked"))
        if self.command != "HEAD":
            for event in ticks(count, every / 1000):
                self.wfile.write(body.chunk(event))
            self.wfile.write(body.chunk(b""))

    def _upgrade(self) -> None:
        key = self.headers.get("Sec-WebSocket-Key")
        if self.headers.get("Upgrade", "").lower() != "websocket" or key is None or self.command != "GET":
            self._send(HTTPStatus.UPGRADE_REQUIRED, TEXT, b"Open this path as a WebSocket.\n")
            return
        self.send_response(HTTPStatus.SWITCHING_PROTOCOLS)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", websocket.accept_key(key))
        self.end_headers()
        self.close_connection = True
        count = websocket.echo(self.rfile, self.wfile)
        self.log_message("WebSocket closed after %d messages", count)


def ticks(count: int, seconds: float) -> Iterator[bytes]:
    """Yield server-sent events `seconds` apart (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    for number in range(count):
        if number:
            time.sleep(seconds)
        data = json.dumps({"container": NAME, "number": number})
        yield f"id: {number}\nevent: tick\ndata: {data}\n\n".encode()


def page() -> bytes:
    """Return the page with the prompt bar."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(name=html.escape(NAME), colour=html.escape(COLOUR)).encode()


def main() -> None:
    """Serve until SIGTERM."""
    server = Server(("0.0.0.0", PORT), Handler)  # noqa: S104 - a container's own network
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    sys.stdout.write(f"{NAME} listens on port {server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
    server.server_close()


if __name__ == "__main__":
    main()
