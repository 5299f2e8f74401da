"""Output that is kept until it has arrived, and input that is taken only once; both by byte offsets."""

from cellmesh.guest.errors import ExecOffsetGone

CAPACITY = 1 << 20
FRAME = 64 << 10


class OutputBuffer:
    """The output of one stream from the first byte not acknowledged; its writer waits while it is full."""

    def __init__(self, *, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._data = bytearray()
        self.start = 0
        self.closed = False

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.start + len(self._data)

    @property
    def room(self) -> int:
        """How many bytes may be added now."""
        return self._capacity - len(self._data)

    def append(self, data: bytes) -> None:
        """Add output; the writer has looked at `room` before."""
        self._data += data

    def acknowledge(self, offset: int) -> bool:
        """Let go of what has arrived up to here; returns whether there was any."""
        count = min(offset, self.end) - self.start
        if count <= 0:
            return False
        del self._data[:count]
        self.start += count
        return True

    def read(self, offset: int) -> bytes:
        """Return at most one frame of output from an offset on; raises ExecOffsetGone."""
        if not self.start <= offset <= self.end:
            message = f"byte {offset} is not kept: {self.start} to {self.end} are; resume from there"
            raise ExecOffsetGone(message)
        position = offset - self.start
        return bytes(self._data[position : position + FRAME])


class InputQueue:
    """Input on its way to the command: each byte once, in order."""

    def __init__(self, *, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._data = bytearray()
        self.written = 0
        self.eof = False

    @property
    def accepted(self) -> int:
        """The offset up to which input has arrived here."""
        return self.written + len(self._data)

    @property
    def full(self) -> bool:
        """Whether the caller should wait before sending more."""
        return len(self._data) >= self._capacity

    @property
    def next_bytes(self) -> bytes:
        """What the command should be given next, at most one frame."""
        return bytes(self._data[:FRAME])

    def accept(self, offset: int, data: bytes, *, eof: bool) -> None:
        """Take input, skipping what is here already; raises ExecOffsetGone at a gap."""
        if offset > self.accepted:
            raise ExecOffsetGone(
                f"input has a gap: it has arrived up to {self.accepted}, not to {offset}; send from there"
            )
        fresh = data[self.accepted - offset :]
        if not self.eof:
            self._data += fresh
            self.eof = eof

    def advance(self, count: int) -> None:
        """Say that the command has been given so many bytes."""
        del self._data[:count]
        self.written += count

    def discard(self) -> None:
        """Count everything as given: nobody reads it any more."""
        self.advance(len(self._data))
