"""What a stranger may send of HTTP/2 before gRPC reads it: headers of frames are checked, their payloads are not."""

from __future__ import annotations

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BLOCK_BYTES = 16 * 1024
"""Longest header block of a call, packed; gRPC bounds what it unpacks to."""
CONTINUATIONS = 4
"""Most frames that continue one header block."""

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = range(10)
_FRAME_BYTES = 16 * 1024
# PUSH_PROMISE is a server's alone, and a type that is not here is nobody's.
_LONGEST = {
    _DATA: _FRAME_BYTES,
    _HEADERS: _FRAME_BYTES,
    _PRIORITY: 5,
    _RST_STREAM: 4,
    _SETTINGS: 32 * 6,
    _PING: 8,
    _GOAWAY: 1024,
    _WINDOW_UPDATE: 4,
    _CONTINUATION: _FRAME_BYTES,
}
_HEADER_BYTES = 9
_ACK = 0x1
_END_HEADERS = 0x4
# What a frame costs: about the time its handling takes, where a frame without a payload is 1.
_CALL_COST = 16
_BYTES_FOR_ONE = 4096


class BadFrames(Exception):
    """The bytes are not what a client of gRPC sends; the message says why and holds nothing of them."""


class FrameCheck:
    """Follows the bytes of one client, in pieces of any size."""

    __slots__ = ("_continued", "_head", "_left", "_open", "_packed", "_preface", "calls", "frames")

    def __init__(self) -> None:
        self.frames = 0
        """Frames that are complete."""
        self.calls = 0
        """Header blocks that began: each is a call, or the end of one."""
        self._preface = 0
        self._head = bytearray()
        self._left = 0
        # The stream whose header block goes on in the next frame, and what came of that block.
        self._open = 0
        self._packed = 0
        self._continued = 0

    def feed(self, data: bytes) -> int:
        """Follow the next bytes and return what they cost. Raises BadFrames; the bytes are then not to be used."""
        at = self._follow_preface(data)
        cost = 0
        while at < len(data):
            if not self._left:
                taken = data[at : at + _HEADER_BYTES - len(self._head)]
                self._head += taken
                at += len(taken)
                if len(self._head) < _HEADER_BYTES:
                    break
                cost += self._begin(bytes(self._head))
                self._head.clear()
            step = min(self._left, len(data) - at)
            self._left -= step
            at += step
            self.frames += not self._left
        return cost

    def _follow_preface(self, data: bytes) -> int:
        wanted = PREFACE[self._preface : self._preface + len(data)]
        if not data.startswith(wanted):
            raise BadFrames("it does not begin as HTTP/2 does")
        self._preface += len(wanted)
        return len(wanted)

    def _begin(self, head: bytes) -> int:
        length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
        stream = int.from_bytes(head[5:]) & 0x7FFF_FFFF
        longest = _LONGEST.get(kind)
        if longest is None:
            raise BadFrames("a frame of a type that no client sends")
        if length > longest:
            raise BadFrames("a frame longer than frames of its type are")
        if not self.frames and (kind != _SETTINGS or flags & _ACK):
            raise BadFrames("the first frame is not SETTINGS")
        self._follow_block(kind, flags, stream, length)
        self._left = length
        return 1 + length // _BYTES_FOR_ONE + _CALL_COST * (kind == _HEADERS)

    def _follow_block(self, kind: int, flags: int, stream: int, length: int) -> None:
        if (kind == _CONTINUATION) != bool(self._open) or (self._open and stream != self._open):
            raise BadFrames("a header block that is not continued as it must be")
        if kind == _HEADERS:
            if not stream:
                raise BadFrames("a call on no stream")
            self.calls += 1
            self._packed = self._continued = 0
        elif kind == _CONTINUATION:
            self._continued += 1
        else:
            return
        self._packed += length
        if self._packed > HEADER_BLOCK_BYTES or self._continued > CONTINUATIONS:
            raise BadFrames("a header block longer than those of calls are")
        self._open = 0 if flags & _END_HEADERS else stream
