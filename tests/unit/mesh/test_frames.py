"""Bytes of HTTP/2 are followed in pieces of any size, and what a client of gRPC never sends is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmesh.mesh.frames import CONTINUATIONS, HEADER_BLOCK_BYTES, PREFACE, BadFrames, FrameCheck
from support.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)

BEGIN = PREFACE + frame(SETTINGS)
CALL = frame(HEADERS, b"h" * 100, stream=1, flags=END_HEADERS)
GOOD = {
    "nothing": b"",
    "settings and acknowledgement": frame(SETTINGS, b"s" * 36) + frame(SETTINGS, flags=1),
    "a call": CALL + frame(DATA, b"d" * 16384, stream=1) + frame(DATA, stream=1, flags=1),
    "a call in two blocks": frame(HEADERS, b"h" * 8000, stream=1)
    + frame(CONTINUATION, b"h" * 8000, stream=1, flags=END_HEADERS)
    + CALL,
    "control": frame(PING, b"p" * 8)
    + frame(WINDOW_UPDATE, b"w" * 4)
    + frame(RST_STREAM, b"r" * 4, stream=1)
    + frame(PRIORITY, b"p" * 5, stream=1)
    + frame(GOAWAY, b"g" * 8),
    "the reserved bit of a stream": frame(DATA, b"d", stream=1 | 1 << 31),
}
BAD = {
    "HTTP/1": b"GET / HTTP/1.1\r\n",
    "garbage": b"\xff\x00GARBAGE",
    "a preface that goes wrong": PREFACE[:-1] + b"x",
    "a call first": PREFACE + CALL,
    "an acknowledgement first": PREFACE + frame(SETTINGS, flags=1),
    "a type to come": BEGIN + frame(10),
    "the last type": BEGIN + frame(255, b"x" * 16384),
    "a push": BEGIN + frame(PUSH_PROMISE, b"p" * 4, stream=1),
    "data beyond a frame": BEGIN + frame(DATA, b"d" * 16385, stream=1),
    "headers beyond a frame": BEGIN + frame(HEADERS, b"h" * 16385, stream=1, flags=END_HEADERS),
    "a frame of 16 MiB": BEGIN + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "a long ping": BEGIN + frame(PING, b"p" * 9),
    "a long reset": BEGIN + frame(RST_STREAM, b"r" * 5, stream=1),
    "a long window": BEGIN + frame(WINDOW_UPDATE, b"w" * 5),
    "a long priority": BEGIN + frame(PRIORITY, b"p" * 6, stream=1),
    "many settings": BEGIN + frame(SETTINGS, b"s" * 198),
    "a long goodbye": BEGIN + frame(GOAWAY, b"g" * 1025),
    "a call on no stream": BEGIN + frame(HEADERS, b"h", flags=END_HEADERS),
    "a continuation of nothing": BEGIN + frame(CONTINUATION, b"h", stream=1),
    "a continuation after the end": BEGIN + CALL + frame(CONTINUATION, b"h", stream=1),
    "a continuation of another call": BEGIN + frame(HEADERS, stream=1) + frame(CONTINUATION, stream=3),
    "a ping within a block": BEGIN + frame(HEADERS, stream=1) + frame(PING, b"p" * 8),
    "a call within a block": BEGIN + frame(HEADERS, stream=1) + frame(HEADERS, stream=1),
    "a block of many": BEGIN + frame(HEADERS, stream=1) + frame(CONTINUATION, stream=1) * (CONTINUATIONS + 1),
    "a block too long": BEGIN
    + frame(HEADERS, b"h" * 16000, stream=1)
    + frame(CONTINUATION, b"h" * (HEADER_BLOCK_BYTES - 15999), stream=1, flags=END_HEADERS),
}


def follow(data: bytes, size: int) -> tuple[FrameCheck, int]:
    """Feed bytes in pieces of a size; return the check and what they cost."""
    check = FrameCheck()
    return check, sum(check.feed(data[at : at + size]) for at in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 7, 9, 1000, 1 << 20])
@pytest.mark.parametrize("name", GOOD)
def test_what_clients_send_passes(name: str, size: int) -> None:
    """Whatever the pieces, it passes, costs the same, and its frames are counted."""
    data = BEGIN + GOOD[name]
    check, cost = follow(data, size)
    assert cost == follow(data, len(data))[1]
    assert check.frames == follow(data, len(data))[0].frames >= 1


@pytest.mark.parametrize("size", [1, 7, 9, 1000, 1 << 20])
@pytest.mark.parametrize("name", BAD)
def test_what_no_client_sends_is_refused(name: str, size: int) -> None:
    """Whatever the pieces, it is refused."""
    with pytest.raises(BadFrames):
        follow(BAD[name], size)


def test_a_refusal_comes_before_the_payload() -> None:
    """The header of a frame that must not come is enough."""
    with pytest.raises(BadFrames):
        follow(BEGIN + frame(200, b"x" * 100)[:9], 1)


def test_a_frame_counts_once_it_is_complete() -> None:
    """All but its last byte is not a frame yet, and neither is a header alone."""
    check = FrameCheck()
    check.feed(BEGIN + CALL[:-1])
    assert (check.frames, check.calls) == (1, 1)
    check.feed(CALL[-1:])
    assert check.frames == 2
    check.feed(frame(DATA, b"d", stream=1)[:9])
    assert check.frames == 2


def test_calls_cost_more_than_frames_and_bytes_cost_too() -> None:
    """What takes the host longer costs more."""
    check = FrameCheck()
    check.feed(BEGIN)
    ping, long, call = (check.feed(each) for each in (frame(PING, b"p" * 8), frame(DATA, b"d" * 16384, stream=1), CALL))
    assert 1 == ping < long < call


@given(st.binary(max_size=200))
def test_no_bytes_are_beyond_it(data: bytes) -> None:
    """Any bytes pass or are refused, and nothing else is raised."""
    check = FrameCheck()
    check.feed(BEGIN)
    with contextlib.suppress(BadFrames):
        assert check.feed(data) >= 0
