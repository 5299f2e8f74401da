"""QEMU's control protocol over a connected socket: commands with their answers, and events."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any


class QmpError(Exception):
    """QEMU refused a command, or ended before it answered."""


class Qmp:
    """One control connection; events go to `on_event` as they come."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._on_event = on_event
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._next = 0
        self._greeted = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._listen())

    @classmethod
    async def connect(cls, end: socket.socket, on_event: Callable[[str, dict[str, Any]], None]) -> Qmp:
        """Negotiate; returns when QEMU takes commands. Raises QmpError if it ends first."""
        reader, writer = await asyncio.open_connection(sock=end)
        qmp = cls(reader, writer, on_event)
        await qmp._greeted
        await qmp.execute("qmp_capabilities")
        return qmp

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command and return its answer; raises QmpError."""
        if self._task.done():
            raise QmpError("QEMU has ended")
        self._next += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[self._next] = answer
        line = {"execute": command, "arguments": arguments, "id": self._next}
        self._writer.write(json.dumps(line).encode() + b"\n")
        return await answer

    async def heard_out(self) -> None:
        """Wait until QEMU, which has ended, has been heard to the end."""
        await asyncio.wait({self._task})

    async def close(self) -> None:
        """End the connection."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()

    async def _listen(self) -> None:
        try:
            while line := await self._reader.readline():
                self._dispatch(json.loads(line))
        except ConnectionError:
            pass  # QEMU was killed; everyone who waits is told below
        finally:
            for future in (self._greeted, *self._waiting.values()):
                if not future.done():
                    future.set_exception(QmpError("QEMU has ended"))

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "QMP" in message:
            self._greeted.set_result(None)
        elif "event" in message:
            self._on_event(message["event"], message.get("data", {}))
        elif (future := self._waiting.pop(message.get("id", 0), None)) is not None and not future.done():
            if "error" in message:
                future.set_exception(QmpError(message["error"]["desc"]))
            else:
                future.set_result(message["return"])
