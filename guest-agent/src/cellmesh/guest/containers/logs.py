"""A container's output: the newest of it, by byte offsets, never in the container's way."""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from cellmesh.guest.changes import Changes

CHUNK = 64 << 10
_RING = 1 << 20
_JOIN_BELOW = 4 << 10
_JOIN_WITHIN = 0.1
_CHUNK_COST = 128
_KEPT_GENERATIONS = 2
# At most 6.4 MB/s: who writes faster waits at its pipe, and the agent has time for the others.
_PAUSE = 0.01


class Stream(IntEnum):
    """Which output, by the contract's numbers."""

    STDOUT = 1
    STDERR = 2


@dataclass(slots=True, kw_only=True)
class Chunk:
    """A piece of output: its position, stream, when it was read (seconds since 1970), and its bytes."""

    offset: int
    stream: Stream
    time: float
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What a read found: pieces in order, where to read on, and how much was gone before the first piece."""

    chunks: tuple[Chunk, ...]
    next_offset: int
    skipped: int
    ended: bool


class LogRing:
    """The newest output of one generation, bounded in bytes with what the keeping costs."""

    def __init__(self, *, limit: int = _RING, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._clock = clock
        self._chunks: deque[Chunk] = deque()
        self._cost = 0
        self._read_to = 0
        self.end = 0
        self.dropped_unread = 0
        self.closed = False
        self.changes = Changes()

    @property
    def start(self) -> int:
        """The offset of the oldest byte kept."""
        return self._chunks[0].offset if self._chunks else self.end

    def append(self, stream: Stream, data: bytes) -> None:
        """Add output, dropping the oldest when there is too much."""
        now = self._clock()
        last = self._chunks[-1] if self._chunks else None
        joins = last is not None and last.stream is stream and now - last.time < _JOIN_WITHIN
        if last is not None and joins and len(last.data) + len(data) <= _JOIN_BELOW:
            last.data += data
            self._cost += len(data)
        else:
            self._chunks.append(Chunk(offset=self.end, stream=stream, time=now, data=data))
            self._cost += len(data) + _CHUNK_COST
        self.end += len(data)
        while self._cost > self._limit and len(self._chunks) > 1:
            self._drop()
        self.changes.notify()

    def read(self, offset: int, limit: int = 2 * CHUNK, count: int = 256) -> Slice:
        """Return output from an offset on, at most `limit` bytes in `count` pieces."""
        position = min(max(offset, self.start), self.end)
        skipped = max(self.start - offset, 0)
        chunks: list[Chunk] = []
        for chunk in self._chunks:
            if limit <= 0 or len(chunks) == count:
                break
            if chunk.offset + len(chunk.data) <= position:
                continue
            data = chunk.data[position - chunk.offset :][: min(limit, CHUNK)]
            chunks.append(Chunk(offset=position, stream=chunk.stream, time=chunk.time, data=data))
            position += len(data)
            limit -= len(data)
            if position < chunk.offset + len(chunk.data):
                break
        self._read_to = max(self._read_to, position)
        ended = self.closed and position == self.end
        return Slice(chunks=tuple(chunks), next_offset=position, skipped=skipped, ended=ended)

    def close(self) -> None:
        """Say that the generation has ended and nothing follows."""
        self.closed = True
        self.changes.notify()

    def _drop(self) -> None:
        chunk = self._chunks.popleft()
        self._cost -= len(chunk.data) + _CHUNK_COST
        self.dropped_unread += max(chunk.offset + len(chunk.data) - max(chunk.offset, self._read_to), 0)


class Logs:
    """The rings of one container: those of its newest generations."""

    def __init__(self) -> None:
        self._rings: dict[int, LogRing] = {}
        self._dropped_before = 0

    @property
    def dropped_unread(self) -> int:
        """Bytes dropped that nobody had read, in all."""
        return self._dropped_before + sum(ring.dropped_unread for ring in self._rings.values())

    def open(self, generation: int) -> LogRing:
        """Start the ring of a generation, letting go of the oldest."""
        ring = self._rings[generation] = LogRing()
        while len(self._rings) > _KEPT_GENERATIONS:
            oldest = self._rings.pop(min(self._rings))
            self._dropped_before += oldest.dropped_unread
        return ring

    def find(self, generation: int) -> tuple[int, LogRing] | None:
        """Return a generation and its ring, the newest for 0; None if it is not kept."""
        wanted = generation or max(self._rings, default=0)
        ring = self._rings.get(wanted)
        return None if ring is None else (wanted, ring)


class OutputReader:
    """Moves what a container writes into its ring, as it comes."""

    def __init__(self, descriptor: int, stream: Stream, ring: LogRing) -> None:
        self._descriptor = descriptor
        self._stream = stream
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        os.set_blocking(descriptor, False)
        self._paused: asyncio.TimerHandle | None = None
        self._watch()

    def _watch(self) -> None:
        self._paused = None
        self._loop.add_reader(self._descriptor, self._read_and_pause)

    def _read_and_pause(self) -> None:
        if self._read():
            self._loop.remove_reader(self._descriptor)
            self._paused = self._loop.call_later(_PAUSE, self._watch)

    def _read(self) -> bool:
        try:
            data = os.read(self._descriptor, CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._ring.append(self._stream, data)
        else:
            self.close()
        return bool(data)

    def drain(self) -> None:
        """Take what is there now, and close: the process that wrote it is gone."""
        # Bounded, because an orphan of that process may go on writing for ever.
        for _ in range(64):
            if self._descriptor < 0 or not self._read():
                break
        self.close()

    def close(self) -> None:
        """Stop reading."""
        if self._paused is not None:
            self._paused.cancel()
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1
