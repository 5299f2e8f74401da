"""Frames of HTTP/2, good and bad, as bytes."""

from __future__ import annotations

(
    DATA,
    HEADERS,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    PUSH_PROMISE,
    PING,
    GOAWAY,
    WINDOW_UPDATE,
    CONTINUATION,
) = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4


def frame(kind: int, payload: bytes = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    """Write a frame."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def literal(name: str, value: str) -> bytes:
    """Write a header by HPACK, neither packed nor indexed."""
    return b"\x00" + b"".join(_string(each.encode()) for each in (name, value))


def call_headers(path: str) -> bytes:
    """Write the header block by which a call of gRPC begins."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "host",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(literal(name, value) for name, value in fields.items())


def _string(data: bytes) -> bytes:
    if len(data) >= 127:
        raise ValueError("longer strings are not needed here")
    return bytes((len(data),)) + data
