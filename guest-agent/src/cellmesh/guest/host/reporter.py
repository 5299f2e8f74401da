"""Streaming the reports to the host, over and over, whatever becomes of the stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

import grpc
import grpc.aio

from cellmesh.api.guest.v1 import agent_service_pb2, agent_service_pb2_grpc
from cellmesh.guest.boot import say
from cellmesh.guest.changes import Changes
from cellmesh.guest.errors import ungrouped
from cellmesh.guest.host.channel import heed_cancellation, jittered
from cellmesh.guest.host.hello import say_hello
from cellmesh.guest.host.report import Report, ReportLog
from cellmesh.guest.identity import Identity
from cellmesh.guest.status import retry_delay

_COALESCE = 0.05
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
_HEARTBEAT_SHARE = 0.7
_LONGEST_STREAM = 86_400.0

Snapshot = Callable[[], agent_service_pb2.ReportRequest]

if TYPE_CHECKING:
    _Call = grpc.aio.StreamStreamCall[agent_service_pb2.ReportRequest, agent_service_pb2.ReportResponse]


class Reporter:
    """Sends what `snapshot` returns whenever `changes` says so, and as a heartbeat."""

    def __init__(
        self,
        *,
        stub: agent_service_pb2_grpc.AgentServiceAsyncStub,
        identity: Identity,
        changes: Changes,
        snapshot: Snapshot,
        log: ReportLog[agent_service_pb2.ReportRequest],
    ) -> None:
        self._stub = stub
        self._identity = identity
        self._changes = changes
        self._snapshot = snapshot
        self._log = log
        self._acknowledged = Changes()
        self._pause = _FIRST_PAUSE

    async def run(self) -> None:
        """Report for ever."""
        while True:
            try:
                await self._stream()
            except grpc.aio.AioRpcError as error:
                heed_cancellation()
                await self._recover(error)

    async def _recover(self, error: grpc.aio.AioRpcError) -> None:
        say(f"the report stream ended: {error.code().name} {error.details()}")
        wanted = _asked_pause(error)
        await asyncio.sleep(max(jittered(self._pause), wanted))
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
            await say_hello(self._stub, self._identity.boot_id)

    async def _stream(self) -> None:
        call = self._stub.Report(None, timeout=_LONGEST_STREAM)
        try:
            with ungrouped(grpc.aio.AioRpcError):
                async with asyncio.TaskGroup() as group:
                    writer = group.create_task(self._write(call))
                    await self._read(call)
                    writer.cancel()
        finally:
            call.cancel()

    async def _read(self, call: _Call) -> None:
        async for response in call:
            self._log.acknowledge(response.acknowledged_sequence)
            self._acknowledged.notify()
            self._pause = _FIRST_PAUSE
        # A stream the host ended without an error is still one to open again, unhurried.
        await asyncio.sleep(jittered(self._pause))

    async def _write(self, call: _Call) -> None:
        try:
            for report in self._log.unacknowledged:
                await call.write(report.snapshot)
            interval = (await self._identity.assignment()).heartbeat_interval * _HEARTBEAT_SHARE
            while True:
                seen = self._changes.version
                await self._room()
                sent = time.monotonic()
                await call.write(self._next().snapshot)
                await self._change(seen, interval)
                await asyncio.sleep(max(sent + _COALESCE - time.monotonic(), 0))
        except asyncio.InvalidStateError:
            return  # The call is over; the reader learns why.

    async def _room(self) -> None:
        while not self._log.has_room:
            await self._acknowledged.after(self._acknowledged.version)

    async def _change(self, seen: int, interval: float) -> None:
        try:
            async with asyncio.timeout(interval):
                await self._changes.after(seen)
        except TimeoutError:
            return  # Time for a heartbeat.

    def _next(self) -> Report[agent_service_pb2.ReportRequest]:
        snapshot = self._snapshot()
        report = self._log.add(snapshot)
        snapshot.sequence = report.sequence
        return report


def _asked_pause(error: grpc.aio.AioRpcError) -> float:
    trailing = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    details = [value for key, value in trailing if key == "grpc-status-details-bin"]
    return retry_delay(details[0]) if details else 0.0
