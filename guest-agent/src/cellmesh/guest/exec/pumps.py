"""Moving bytes between a command's descriptors and the buffers, as the loop says they are ready."""

import asyncio
import contextlib
import os
from collections.abc import Callable

from cellmesh.guest.exec.buffers import CAPACITY, FRAME, InputQueue, OutputBuffer

_END_OF_TRANSMISSION = b"\x04"


class OutputPump:
    """Reads a descriptor into a buffer while the buffer has room, and owns the descriptor."""

    def __init__(self, descriptor: int, buffer: OutputBuffer, changed: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._buffer = buffer
        self._changed = changed
        self._reading = False
        self._last_round = False
        self._last_bytes = CAPACITY  # What an orphan writes after the command's end is not awaited for ever.
        os.set_blocking(descriptor, False)
        self.resume()

    def resume(self) -> None:
        """Read again, now that there may be room."""
        if not self._reading and self._descriptor >= 0 and self._buffer.room > 0:
            self._reading = True
            asyncio.get_running_loop().add_reader(self._descriptor, self._read)
            if self._last_round:
                self._read()

    def finish(self) -> None:
        """Read what is there, then close: the command is gone, and who it left behind is not waited for."""
        self._last_round = True
        if self._descriptor >= 0 and self._buffer.room > 0:
            self._read()

    def _read(self) -> None:
        while self._buffer.room > 0:
            try:
                data = os.read(self._descriptor, min(FRAME, self._buffer.room))
            except BlockingIOError:
                if self._last_round:
                    self.close()
                return
            except OSError:
                data = b""  # A terminal whose other side is closed answers EIO.
            if self._last_round:
                self._last_bytes -= len(data)
            if not data or self._last_bytes < 0:
                self.close()
                return
            self._buffer.append(data)
            self._changed()
            if not self._last_round:
                break  # Others have their turn too.
        if self._buffer.room <= 0:
            self._pause()

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._descriptor)

    def close(self) -> None:
        """Stop reading and close; the buffer says so."""
        if self._descriptor >= 0:
            self._pause()
            os.close(self._descriptor)
            self._descriptor = -1
            self._buffer.closed = True
            self._changed()


class InputPump:
    """Writes a queue to a descriptor as fast as the command takes it, and owns the descriptor."""

    def __init__(self, descriptor: int, queue: InputQueue, changed: Callable[[], None], *, terminal: bool) -> None:
        self._descriptor = descriptor
        self._queue = queue
        self._changed = changed
        self._terminal = terminal
        self._waiting = False
        os.set_blocking(descriptor, False)
        self.resume()

    def resume(self) -> None:
        """Write what is there."""
        while self._descriptor >= 0 and not self._waiting:
            data = self._queue.next_bytes
            if not data:
                if self._queue.eof:
                    self._end()
                return
            self._write(data)

    def _write(self, data: bytes) -> None:
        try:
            self._queue.advance(os.write(self._descriptor, data))
        except BlockingIOError:
            self._waiting = True
            asyncio.get_running_loop().add_writer(self._descriptor, self._ready)
            return
        except OSError:
            self.close()  # The command closed its input.
        self._changed()

    def _ready(self) -> None:
        self._stop_waiting()
        self.resume()

    def _end(self) -> None:
        if self._terminal:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, _END_OF_TRANSMISSION)
        self.close()

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._waiting = False
            asyncio.get_running_loop().remove_writer(self._descriptor)

    def close(self) -> None:
        """Stop writing and close; what comes now goes nowhere."""
        if self._descriptor >= 0:
            self._stop_waiting()
            os.close(self._descriptor)
            self._descriptor = -1
        self._queue.discard()
        self._changed()
