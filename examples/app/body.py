"""Bodies of any size: what is sent is made on the way, what is received is handed on in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message
from typing import BinaryIO

PIECE = 64 << 10
LARGEST = 64 << 30
_PATTERN = bytes(range(256)) * (PIECE // 256)
_LONGEST_LINE = 1024


class Malformed(Exception):
    """The body ended early, or is not framed as HTTP/1.1 says (RFC 9112 §6)."""


def pattern(size: int) -> Iterator[bytes]:
    """Yield `size` bytes in pieces; the byte at offset N is N modulo 256, so a reader can check them."""
    for start in range(0, size, PIECE):
        yield _PATTERN[: size - start]


def received(headers: Message, reader: BinaryIO) -> Iterator[bytes]:
    """Yield the pieces of a request's body, by its length or chunked; raises Malformed."""
    if headers.get("Transfer-Encoding", "").lower() == "chunked":
        yield from _chunks(reader)
        return
    length = headers.get("Content-Length", "0")
    if not length.isdecimal():
        raise Malformed("the length is not a number")
    yield from _exactly(reader, int(length))


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body; an empty one ends it."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def _chunks(reader: BinaryIO) -> Iterator[bytes]:
    while size := _size_of(_line(reader)):
        yield from _exactly(reader, size)
        if _line(reader):
            raise Malformed("a chunk is longer than it says")
    while _line(reader):
        pass  # trailers, which nobody here reads


def _size_of(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError as error:
        raise Malformed("a chunk has no size") from error


def _line(reader: BinaryIO) -> bytes:
    line = reader.readline(_LONGEST_LINE)
    if not line.endswith(b"\n"):
        raise Malformed("a line of the body is cut off or too long")
    return line.rstrip(b"\r\n")


def _exactly(reader: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0:
        data = reader.read(min(size, PIECE))
        if not data:
            raise Malformed("the body ended early")
        size -= len(data)
        yield data
