"""Standard input on its way to the command: kept until the far side has it."""

from __future__ import annotations

import asyncio

from cellmesh.api.common.v1 import exec_pb2
from cellmesh.cli.errors import ExecLostError

CHUNK = 64 * 1024
_ROOM = 1024 * 1024


class InputBuffer:
    """Bytes with positions: sent from where the far side wants them, dropped once it has them."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._start = 0
        self._sent = 0
        self._is_closed = False
        self._is_eof_sent = False
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def room(self) -> None:
        """Wait until more may be fed."""
        await self._has_room.wait()

    def feed(self, data: bytes) -> None:
        """Take bytes of standard input."""
        self._data += data
        self._tell_room()

    def close(self) -> None:
        """Take the end of standard input."""
        self._is_closed = True

    def acknowledge(self, offset: int) -> None:
        """Drop what has arrived up to `offset`."""
        arrived = min(max(0, offset - self._start), len(self._data))
        del self._data[:arrived]
        self._start += arrived
        self._sent = max(self._sent, self._start)
        self._tell_room()

    def rewind(self, offset: int) -> None:
        """Send from `offset` again, as a new stream asks; raises ExecLostError if that is gone."""
        if offset < self._start:
            raise ExecLostError(f"Input from byte {offset} is wanted; what is kept starts at {self._start}.")
        self.acknowledge(offset)
        self._sent = self._start
        self._is_eof_sent = False

    def take(self) -> exec_pb2.ExecStdin | None:
        """Return the next frame to send, or None if there is nothing to say now."""
        begin = self._sent - self._start
        data = bytes(self._data[begin : begin + CHUNK])
        is_last = self._is_closed and begin + len(data) == len(self._data)
        if not data and (not is_last or self._is_eof_sent):
            return None
        frame = exec_pb2.ExecStdin(offset=self._sent, data=data, eof=is_last)
        self._sent += len(data)
        self._is_eof_sent = is_last
        return frame

    def _tell_room(self) -> None:
        if len(self._data) < _ROOM:
            self._has_room.set()
        else:
            self._has_room.clear()
