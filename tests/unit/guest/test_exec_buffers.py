"""Kept output and once-taken input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmesh.guest.errors import ExecOffsetGone
from cellmesh.guest.exec.buffers import FRAME, InputQueue, OutputBuffer


def test_output_is_kept_until_it_has_arrived() -> None:
    """Acknowledged bytes go and make room, others stay; neither the past nor the future can be read."""
    buffer = OutputBuffer(capacity=100)
    buffer.append(b"a" * 60)
    assert buffer.room == 40
    assert buffer.acknowledge(50)
    assert not buffer.acknowledge(50)
    assert (buffer.start, buffer.end, buffer.room) == (50, 60, 90)
    assert buffer.read(55) == b"a" * 5
    for gone in (49, 61):
        with pytest.raises(ExecOffsetGone, match="50 to 60"):
            buffer.read(gone)


def test_an_acknowledgement_of_the_future_is_one_of_the_present() -> None:
    """A caller that claims more than was said gains nothing."""
    buffer = OutputBuffer()
    buffer.append(b"abc")
    buffer.acknowledge(1 << 60)
    assert (buffer.start, buffer.end) == (3, 3)


def test_a_frame_is_bounded() -> None:
    """No read gives more than a message may carry."""
    buffer = OutputBuffer()
    buffer.append(b"x" * (FRAME + 1))
    assert len(buffer.read(0)) == FRAME


@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 300), st.integers(1, 80)), max_size=20))
def test_input_is_taken_once_whatever_is_sent_again(data: bytes, pieces: list[tuple[int, int]]) -> None:
    """Any pieces, repeated and overlapping, leave a prefix of the input in order; a gap is refused."""
    queue = InputQueue()
    taken = bytearray()
    for start, length in pieces:
        piece = data[start : start + length]
        if start > queue.accepted:
            with pytest.raises(ExecOffsetGone, match="gap"):
                queue.accept(start, piece, eof=False)
        else:
            queue.accept(start, piece, eof=False)
        got = queue.next_bytes
        taken += got
        queue.advance(len(got))
    assert bytes(taken) == data[: len(taken)]
    assert queue.written == queue.accepted == len(taken)


def test_nothing_follows_the_end_of_input() -> None:
    """Bytes after eof are dropped, so that a repeated frame cannot reopen the input."""
    queue = InputQueue()
    queue.accept(0, b"ab", eof=True)
    queue.accept(2, b"cd", eof=False)
    assert (queue.next_bytes, queue.eof) == (b"ab", True)
