"""A server that is no bottleneck: small answers, downloads, uploads and WebSockets of fixed messages.

Started as `python ingress_app.py SOCKET PORT`, it serves the same on a unix socket and on a port of 127.0.0.1.
"""

from __future__ import annotations

import base64
import hashlib
import select
import socket
import sys
import threading

MESSAGE = 100
"""Bytes of a WebSocket message; its sender masks it with zeros, so that nothing has to be computed."""
_ASKED = 2 + 4 + MESSAGE
_ECHO = bytes([0x82, MESSAGE])
_CHUNK = 256 << 10
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


class Echoes:
    """All WebSockets, in one thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._open: dict[int, tuple[socket.socket, bytearray]] = {}
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, connection: socket.socket) -> None:
        """Send back what comes, from now on."""
        self._open[connection.fileno()] = connection, bytearray()
        self._epoll.register(connection, select.EPOLLIN)

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                connection, rest = self._open[descriptor]
                data = connection.recv(1 << 16)
                if not data:
                    del self._open[descriptor]
                    connection.close()
                    continue
                rest += data
                whole = len(rest) - len(rest) % _ASKED
                connection.sendall(b"".join(_ECHO + rest[at + 6 : at + _ASKED] for at in range(0, whole, _ASKED)))
                del rest[:whole]


def serve(listener: socket.socket, echoes: Echoes) -> None:
    """Accept for ever, with a thread for each connection."""
    while True:
        connection, _ = listener.accept()
        if connection.family == socket.AF_INET:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_answer, args=(connection, echoes), daemon=True).start()


def _answer(connection: socket.socket, echoes: Echoes) -> None:
    buffer = memoryview(bytearray(_CHUNK))
    try:
        while head := _head(connection):
            (verb, path), fields = head
            if key := fields.get(b"sec-websocket-key"):
                accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
                connection.sendall(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
                )
                echoes.add(connection)
                return
            left = int(fields.get(b"content-length", b"0"))
            while left:
                left -= connection.recv_into(buffer[: min(left, _CHUNK)])
            size = int(path.partition(b"?size=")[2] or b"0") if verb == b"GET" else 0
            connection.sendall(_OK % size)
            while size:
                part = min(size, _CHUNK)
                connection.sendall(buffer[:part])
                size -= part
        connection.close()
    except OSError:
        connection.close()


def _head(connection: socket.socket) -> tuple[list[bytes], dict[bytes, bytes]] | None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        # Nobody sends more before it is answered, but a body: that is left for who reads it.
        part = connection.recv(1 << 16, socket.MSG_PEEK)
        if not part:
            return None
        end = (head + part).find(b"\r\n\r\n")
        head += connection.recv(len(part) if end < 0 else end + 4 - len(head))
    line, *fields = head[:-4].split(b"\r\n")
    return line.split(b" ")[:2], {name.lower(): value for name, _, value in (each.partition(b": ") for each in fields)}


def main(path: str, port: int) -> None:
    """Serve until killed."""
    near, far = socket.socket(socket.AF_UNIX), socket.create_server(("127.0.0.1", port), backlog=512)
    near.bind(path)
    near.listen(512)
    echoes = Echoes()
    threading.Thread(target=serve, args=(far, echoes), daemon=True).start()
    serve(near, echoes)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
