"""The ring of a container's output."""

from __future__ import annotations

import asyncio
import os

import pytest

from cellmesh.guest.containers import logs
from cellmesh.guest.containers.logs import LogRing, Logs, OutputReader, Stream


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def _ring(limit: int) -> LogRing:
    return LogRing(limit=limit, clock=_Clock())


def test_output_is_read_back_with_offsets_and_streams() -> None:
    """What was written comes back in order, from any offset, even inside a piece."""
    ring = _ring(10_000)
    ring.append(Stream.STDOUT, b"hello ")
    ring.append(Stream.STDERR, b"world")
    part = ring.read(2)
    assert [(c.offset, c.stream, c.data) for c in part.chunks] == [
        (2, Stream.STDOUT, b"llo "),
        (6, Stream.STDERR, b"world"),
    ]
    assert (part.next_offset, part.skipped, part.ended) == (11, 0, False)


def test_the_oldest_output_goes_first_and_is_counted() -> None:
    """A full ring keeps the newest bytes, tells a late reader what it missed, and counts what nobody read."""
    ring = _ring(1000)
    for number in range(20):
        ring.append(Stream.STDOUT, bytes([number]) * 100)
    part = ring.read(0)
    assert part.skipped == ring.start > 0
    assert part.chunks[0].offset == ring.start
    assert part.next_offset == ring.end == 2000
    assert ring.dropped_unread == ring.start


def test_what_was_read_is_not_counted_as_dropped() -> None:
    """Output a reader has had may go without being missed."""
    ring = _ring(1000)
    for _ in range(20):
        ring.append(Stream.STDOUT, b"x" * 100)
        ring.read(ring.start)
    assert ring.start > 0
    assert ring.dropped_unread == 0


def test_many_tiny_writes_cost_bounded_memory() -> None:
    """A byte at a time does not make the ring hold more than its bound in bookkeeping."""
    ring = LogRing(limit=10_000, clock=lambda: 5.0)
    for number in range(50_000):
        ring.append(Stream(1 + number % 2), b"x")
    assert len(ring._chunks) * 128 <= 10_000
    joined = LogRing(limit=1 << 20, clock=lambda: 5.0)
    for _ in range(1000):
        joined.append(Stream.STDOUT, b"x")
    assert len(joined.read(0).chunks) == 1


def test_one_read_is_bounded() -> None:
    """A read gives no more than asked, and the next goes on where it ended."""
    ring = _ring(1 << 20)
    data = bytes(range(256)) * 1200
    for start in range(0, len(data), 50_000):
        ring.append(Stream.STDOUT, data[start : start + 50_000])
    got, offset = b"", 0
    while offset < ring.end:
        part = ring.read(offset, limit=70_000)
        size = sum(len(chunk.data) for chunk in part.chunks)
        assert 0 < size <= 70_000
        got += b"".join(chunk.data for chunk in part.chunks)
        offset = part.next_offset
    assert got == data


def test_a_closed_ring_ends_its_readers() -> None:
    """The last read of a generation that ended says so."""
    ring = _ring(1000)
    ring.append(Stream.STDOUT, b"bye")
    ring.close()
    assert ring.read(0).ended
    assert not ring.read(0, limit=1).ended


def test_the_two_newest_generations_are_kept() -> None:
    """Older generations are let go, and their losses stay counted."""
    logs = Logs()
    first = logs.open(1)
    first.dropped_unread = 7
    logs.open(2)
    logs.open(3)
    assert logs.find(1) is None
    assert logs.find(0) == (3, logs.find(3)[1])  # type: ignore[index]
    assert logs.dropped_unread == 7


async def _reads(turns: int) -> tuple[int, float]:
    """Write at each turn of the loop; return how often the reader read, and the seconds that took."""
    loop, ring = asyncio.get_running_loop(), LogRing()
    read_end, write_end = os.pipe()
    reader = OutputReader(read_end, Stream.STDOUT, ring)
    reads = end = 0
    began = loop.time()
    for _ in range(turns):
        os.write(write_end, b"x")
        await asyncio.sleep(0)
        reads += ring.end > end
        end = ring.end
    took = loop.time() - began
    reader.close()
    os.close(write_end)
    return reads, took


@pytest.mark.asyncio
async def test_who_writes_without_end_is_read_at_a_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output is read at most a hundred times in a second, however it is written. Control: without a pause, far more."""
    reads, took = await _reads(4000)
    assert 0 < reads <= took / 0.01 + 1
    monkeypatch.setattr(logs, "_PAUSE", 0)
    reads, took = await _reads(4000)
    assert reads >= 1000


@pytest.mark.asyncio
async def test_what_a_process_wrote_last_is_kept() -> None:
    """The output that waits while reading pauses is there once the process has ended."""
    ring = LogRing()
    read_end, write_end = os.pipe()
    reader = OutputReader(read_end, Stream.STDOUT, ring)
    os.write(write_end, b"first ")
    async with asyncio.timeout(30):
        while not ring.end:  # noqa: ASYNC110  # the reader tells nobody
            await asyncio.sleep(0)
    os.write(write_end, b"last")
    os.close(write_end)
    reader.drain()
    assert b"".join(chunk.data for chunk in ring.read(0).chunks) == b"first last"
