"""Bytes by which two servers may disagree where a request ends, drawn by a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from support.envoy import ALICE, BOB

_BEARER = f"Authorization: Bearer {ALICE}"
_NAMES = (
    ("Transfer-Encoding", 20),
    ("transfer-encoding", 1),
    ("Transfer-Encoding ", 1),
    ("Transfer-Encoding\t", 1),
    ("Transfer-Encoding\0", 1),
    ("Transfer_Encoding", 1),
    (" Transfer-Encoding", 1),
    ("X: y\rTransfer-Encoding", 1),
    ("X: y\nTransfer-Encoding", 1),
    ("X: y\r\n Transfer-Encoding", 1),
    ("Content-Encoding", 1),
)
_ENCODINGS = (
    *("chunked",) * 20,
    "Chunked",
    "cHuNkEd",
    "chunked ",
    "\tchunked",
    " chunked",
    "\x0bchunked",
    "chunked\0",
    "identity",
    "gzip, chunked",
    "chunked, identity",
    "chunked, chunked",
    "chunked;q=1",
    '"chunked"',
    "xchunked",
    "",
    "x",
)
_LENGTH_NAMES = (
    *("Content-Length",) * 12,
    "content-length",
    "Content-Length ",
    "Content_Length",
    "X: y\nContent-Length",
)
_LENGTHS = (
    *("{}",) * 20,
    "0",
    "0",
    "+{}",
    "-{}",
    "0x{}",
    "0{}",
    "{}, {}",
    "{},0",
    "{} ",
    " {}",
    "\t{}",
    "{}\x0b",
    "{};",
    "",
    "9" * 20,
)
_OTHERS = (
    "Connection: keep-alive",
    "Connection: close",
    "Connection: Content-Length",
    "Connection: Transfer-Encoding",
    "Connection: x-cellmesh-user",
    "Expect: 100-continue",
    "Expect: 100-continue",
    "Upgrade: h2c\r\nConnection: upgrade",
    "Upgrade: websocket\r\nConnection: upgrade",
    "Upgrade: websocket\r\nConnection: upgrade",
    "TE: trailers",
    "Trailer: Content-Length",
    f"x-cellmesh-user: {BOB}",
    "Host: evil.test",
    "X: a\r\n b",
    "X: a\r\n\tContent-Length: 3",
    "X: a\rb",
    "X: a\nb",
    "X\0: a",
    "X : a",
    ": a",
    "X",
)
_ENDS = ("\r\n",) * 150 + ("\n", "\n", "\r", "\r\r\n", "\n\r", " \r\n")
_LINES = ("{} {} HTTP/1.1",) * 40 + (
    "{} {} HTTP/1.0",
    "{} {} HTTP/1.2",
    "{} {} HTTP/2.0",
    "{}  {} HTTP/1.1",
    "{}\t{}\tHTTP/1.1",
    "{} {}  HTTP/1.1",
    "{} http://cell.test{} HTTP/1.1",
    "{} {}",
    "\r\n{} {} HTTP/1.1",
    " {} {} HTTP/1.1",
    "{} {}\x0b HTTP/1.1",
    "{} {} HTTP/1.1 x",
)
_METHODS = ("GET",) * 6 + ("POST",) * 9 + ("PUT", "HEAD", "OPTIONS", "get", "GET\0")
_SIZES = ("{:x}",) * 20 + (
    "{:X}",
    "0{:x}",
    "00000000000000000{:x}",
    "0x{:x}",
    "+{:x}",
    "{:x} ",
    " {:x}",
    "{:x};a=b",
    '{:x};a="\r\n"',
    "{:x};\n",
    "{:x}\0",
    "1{:016x}",
    "-1",
    "",
)
_LASTS = ("0",) * 12 + ("00", "0;a", "0 ", "-0", "")
_FIELDS_H2 = (
    ("x-a", "b\r\nx-evil: 1"),
    ("x-a", "b\nx-evil: 1"),
    ("x-a", "b\rc"),
    ("x-a", "b\0c"),
    ("x-a\r\nx-evil", "1"),
    ("x-a: b\r\nx-evil", "1"),
    ("x a", "1"),
    ("X-A", "1"),
    ("", "1"),
    ("x-a ", "1"),
    ("x-a\0", "1"),
    ("transfer-encoding", "chunked"),
    ("transfer-encoding", "identity"),
    ("connection", "close"),
    ("connection", "x-cellmesh-user"),
    ("keep-alive", "1"),
    ("proxy-connection", "close"),
    ("upgrade", "websocket"),
    ("te", "gzip"),
    ("te", "trailers"),
    ("host", "evil.test"),
    ("host", "cell.test"),
    ("content-length", "0"),
    ("content-length", "5"),
    ("content-length", "500"),
    ("content-length", "5, 5"),
    ("content-length", "+5"),
    ("content-length", "5\r\n\r\nGET /s/{} HTTP/1.1"),
    ("expect", "100-continue"),
    ("x-cellmesh-user", BOB),
    (":path", "/s/{}"),
    (":authority", "evil.test"),
    (":method", "POST"),
    (":status", "200"),
    (":protocol", "websocket"),
)
_PATHS_H2 = ("{}",) * 40 + (
    "{} HTTP/1.1\r\nx-evil: 1",
    "{}\r\nx-evil: 1",
    "{} x",
    "{}\t",
    "{}\0",
    "{}#a",
    "*",
    "",
    "http://cell.test{}",
    "{}\n",
    "{}?\r\n\r\nGET /s/ HTTP/1.1",
)
_METHODS_H2 = (
    ("GET",) * 20 + ("POST",) * 16 + ("GET /s/{} HTTP/1.1\r\nx: y\r\n\r\nGET", "GET\r\n", "CONNECT", "get", "")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """A request of HTTP/2: its headers, and its body in two frames, or none."""

    headers: tuple[tuple[str, str], ...]
    body: bytes


def cases(seed: int, count: int) -> Iterator[bytes]:
    """Yield what clients send on one HTTP/1.1 connection each: a strange request, and another behind it."""
    draw = random.Random(seed)  # noqa: S311  # the same in every run
    for number in range(count):
        hidden = f"GET /s/{number} HTTP/1.1\r\nHost: cell.test\r\n{_BEARER}\r\nX: "
        behind = f"GET /b/{number} HTTP/1.1\r\nHost: cell.test\r\n{_BEARER}\r\nConnection: close\r\n\r\n"
        yield (_strange(draw, f"/a/{number}", hidden) + behind).encode("latin-1")


def _strange(draw: random.Random, path: str, hidden: str) -> str:
    lines = [draw.choice(_LINES).format(draw.choice(_METHODS), path), "Host: cell.test", _BEARER]
    body = draw.choice((hidden, hidden + "y\r\n\r\n", "abcde", ""))
    framing = draw.choice(("length", "chunks", "both", "both", "chunks twice", "length twice", "none"))
    if "length" in framing or framing == "both":
        lines += [_length(draw, body) for _ in range(2 if "twice" in framing else 1)]
    if "chunks" in framing or framing == "both":
        lines += [_encoding(draw) for _ in range(2 if "twice" in framing else 1)]
    lines += draw.sample(_OTHERS, draw.choice((0, 0, 1, 2)))
    if draw.random() < 0.3:
        rest = lines[1:]
        draw.shuffle(rest)
        lines[1:] = rest
    if framing in ("chunks", "both", "chunks twice") and draw.random() < 0.8:
        body = _chunks(draw, body)
    return "".join(line + draw.choice(_ENDS) for line in lines) + draw.choice(_ENDS) + body


def _length(draw: random.Random, body: str) -> str:
    size = draw.choice((len(body), len(body), 4, 0, len(body) + 20))
    return f"{draw.choice(_LENGTH_NAMES)}: {draw.choice(_LENGTHS).format(size, size)}"


def _encoding(draw: random.Random) -> str:
    names, weights = zip(*_NAMES, strict=True)
    return f"{draw.choices(names, weights)[0]}: {draw.choice(_ENCODINGS)}"


def _chunks(draw: random.Random, body: str) -> str:
    def end() -> str:
        return draw.choice(_ENDS)

    size = draw.choice(_SIZES).format(draw.choice((len(body), len(body), len(body) + 2, 1)))
    first = f"{size}{end()}{body}{end()}" if body else ""
    trailers = draw.choice(
        ("", "", "", "X: y\r\n", "Content-Length: 40\r\n", "Transfer-Encoding: chunked\r\n", "Host: evil.test\r\n")
    )
    return f"{first}{draw.choice(_LASTS)}{end()}{trailers}{end()}"


def frames(seed: int, count: int) -> Iterator[Frames]:
    """Yield requests of HTTP/2 that would be others in HTTP/1.1."""
    draw = random.Random(seed)  # noqa: S311  # the same in every run
    for number in range(count):
        method = draw.choice(_METHODS_H2).format(number)
        path = draw.choice(_PATHS_H2).format(f"/a/{number}")
        headers = [(":method", method), (":scheme", draw.choice(("http",) * 20 + ("https", "x\r\n"))), (":path", path)]
        headers.append(
            (":authority", draw.choice(("cell.test",) * 20 + ("cell.test\r\nx-evil: 1", "", "cell.test:80")))
        )
        headers.append(("authorization", f"Bearer {ALICE}"))
        headers += [(name, value.format(number)) for name, value in draw.sample(_FIELDS_H2, draw.choice((0, 1, 1, 2)))]
        if draw.random() < 0.1:
            draw.shuffle(headers)
        body = draw.choice((b"", b"abcde", f"GET /s/{number} HTTP/1.1\r\nHost: cell.test\r\n\r\n".encode()))
        yield Frames(headers=tuple(headers), body=body)
