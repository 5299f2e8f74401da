"""The server's side of a WebSocket (RFC 6455), as much as an echo needs: one frame per message, no extensions."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterator
from typing import BinaryIO

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MAX_MESSAGE = 64 << 10
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
PROTOCOL_ERROR, UNSUPPORTED, TOO_BIG = 1002, 1003, 1009


class Refused(Exception):
    """The other side broke the protocol; `code` is the reason to close with."""

    def __init__(self, code: int) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


def accept_key(key: str) -> str:
    """Return the answer to a client's Sec-WebSocket-Key."""
    return base64.b64encode(hashlib.sha1((key + GUID).encode(), usedforsecurity=False).digest()).decode()


def echo(reader: BinaryIO, writer: BinaryIO) -> int:
    """Send every message back until the other side closes; return how many there were."""
    count = 0
    try:
        for kind, payload in _frames(reader):
            if kind == CLOSE:
                writer.write(frame(CLOSE, payload[:2]))
                return count
            if kind == PING:
                writer.write(frame(PONG, payload))
            elif kind in {TEXT, BINARY}:
                writer.write(frame(kind, payload))
                count += 1
            writer.flush()
    except Refused as refused:
        writer.write(frame(CLOSE, struct.pack(">H", refused.code)))
    return count


def frame(kind: int, payload: bytes) -> bytes:
    """Return one whole, unmasked frame."""
    if len(payload) < 126:
        head = struct.pack(">BB", 0x80 | kind, len(payload))
    elif len(payload) < 1 << 16:
        head = struct.pack(">BBH", 0x80 | kind, 126, len(payload))
    else:
        head = struct.pack(">BBQ", 0x80 | kind, 127, len(payload))
    return head + payload


def _frames(reader: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield kind and payload of each frame until the stream ends."""
    while len(head := reader.read(2)) == 2:
        kind, length = head[0] & 0x0F, head[1] & 0x7F
        if not head[1] & 0x80 or head[0] & 0x70:
            raise Refused(PROTOCOL_ERROR)
        if not head[0] & 0x80 or kind == 0:
            raise Refused(UNSUPPORTED)
        if length >= 126:
            size = 2 if length == 126 else 8
            length = int.from_bytes(_exactly(reader, size), "big")
        if length > MAX_MESSAGE:
            raise Refused(TOO_BIG)
        mask = _exactly(reader, 4)
        yield kind, _unmask(_exactly(reader, length), mask)


def _unmask(payload: bytes, mask: bytes) -> bytes:
    stretched = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(stretched, "big")).to_bytes(len(payload), "big")


def _exactly(reader: BinaryIO, size: int) -> bytes:
    data = reader.read(size)
    if len(data) < size:
        raise Refused(PROTOCOL_ERROR)
    return data
