"""A sandbox app: a page with a prompt bar, a health page, and a WebSocket that sends back what it gets.

Settings, all from the environment: APP_NAME and APP_COLOUR tell variants apart, PORT is where it listens.
Paths count by their last part, so the app can be served below any prefix.
"""

from __future__ import annotations

import html
import os
import signal
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from string import Template

import websocket

NAME = os.environ.get("APP_NAME", "sandbox")
COLOUR = os.environ.get("APP_COLOUR", "#335577")
PORT = int(os.environ.get("PORT", "8080"))
IDLE_SECONDS = 300


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server_version = "sandbox"
    sys_version = ""
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        """Answer by the last part of the path."""
        last = self.path.partition("?")[0].rstrip("/").rpartition("/")[2]
        if last == "healthz":
            self._send(HTTPStatus.OK, "text/plain; charset=utf-8", b"ok\n")
        elif last == "ws":
            self._upgrade()
        elif last in {"", "dev", "live"}:
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page())
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"There is no such page.\n")

    do_HEAD = do_GET  # noqa: N815 - the names are the base class's

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Write one line per request to standard output."""
        sys.stdout.write(f"{NAME} {format % args}\n")
        sys.stdout.flush()

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-App", NAME)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _upgrade(self) -> None:
        key = self.headers.get("Sec-WebSocket-Key")
        if self.headers.get("Upgrade", "").lower() != "websocket" or key is None or self.command != "GET":
            self._send(HTTPStatus.UPGRADE_REQUIRED, "text/plain; charset=utf-8", b"Open this path as a WebSocket.\n")
            return
        self.send_response(HTTPStatus.SWITCHING_PROTOCOLS)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", websocket.accept_key(key))
        self.end_headers()
        self.close_connection = True
        count = websocket.echo(self.rfile, self.wfile)
        self.log_message("WebSocket closed after %d messages", count)


def page() -> bytes:
    """Return the page with the prompt bar."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(name=html.escape(NAME), colour=html.escape(COLOUR)).encode()


def main() -> None:
    """Serve until SIGTERM."""
    server = ThreadingHTTPServer(("0.0.0.0", PORT), Handler)  # noqa: S104 - a container's own network
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    sys.stdout.write(f"{NAME} listens on port {PORT}\n")
    sys.stdout.flush()
    server.serve_forever()
    server.server_close()


if __name__ == "__main__":
    main()
