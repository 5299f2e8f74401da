"""Calls with bytes in place of messages, to any method of the contract, and what came of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.rpc import error_details_pb2, status_pb2

from cellmesh.api.common.v1 import error_reason_pb2 as common
from cellmesh.api.guest.v1 import error_reason_pb2 as guest
from cellmesh.api.hypervisor.v1 import error_reason_pb2 as hypervisor

_DETAILS = "grpc-status-details-bin"
_REASONS = {
    "cellmesh": frozenset(common.ErrorReason.keys()),
    "hypervisor.cellmesh": frozenset(hypervisor.ErrorReason.keys()),
    "guest.cellmesh": frozenset(guest.ErrorReason.keys()),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call ended."""

    code: str
    """Name of the status code."""
    message: str = ""
    """What the status says."""
    reason: str = ""
    """Reason in ErrorInfo; empty without one."""
    domain: str = ""
    """Domain in ErrorInfo."""
    fields: tuple[str, ...] = ()
    """Fields that BadRequest names, without the places in lists."""
    answers: int = 0
    """Messages received."""

    @property
    def in_contract(self) -> bool:
        """Tell whether the error's reason stands in the contract's enums."""
        return f"ERROR_REASON_{self.reason}" in _REASONS.get(self.domain, frozenset())


def methods(*files: FileDescriptor) -> Iterator[MethodDescriptor]:
    """Give every RPC of some contracts."""
    for file in files:
        for service in file.services_by_name.values():
            yield from service.methods


def channel(path: Path) -> grpc.aio.Channel:
    """Return a channel to a unix socket that sends whatever it is given."""
    unbounded = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(f"unix:{path}", options=unbounded)


async def call(
    to: grpc.aio.Channel, method: MethodDescriptor, *frames: bytes, seconds: float = 10.0, most: int = 2
) -> Outcome:
    """Call a method with these bytes; of a stream of answers read at most `most`."""
    streams = ("unary", "stream")
    kind = f"{streams[method.client_streaming]}_{streams[method.server_streaming]}"
    callable_ = getattr(to, kind)(f"/{method.containing_service.full_name}/{method.name}")
    made = callable_(iter(frames) if method.client_streaming else frames[0], timeout=seconds)
    answers = 0
    try:
        if not method.server_streaming:
            await made
            return Outcome(code="OK", answers=1)
        async for _ in made:
            answers += 1
            if answers == most:
                made.cancel()
                # gRPC's own thread waits for the end of every call; so does whoever ends it.
                await made.code()
                break
    except grpc.aio.AioRpcError as error:
        return _outcome(error, answers)
    return Outcome(code="OK", answers=answers)


def _outcome(error: grpc.aio.AioRpcError, answers: int) -> Outcome:
    said: dict[str, Any] = {"code": error.code().name, "message": error.details() or "", "answers": answers}
    metadata: Any = error.trailing_metadata()
    for key, value in metadata or ():
        if key == _DETAILS and isinstance(value, bytes):
            said |= _details(status_pb2.Status.FromString(value))
    return Outcome(**said)


def _details(status: status_pb2.Status) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for detail in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            said |= {"reason": info.reason, "domain": info.domain}
        elif detail.Unpack(bad):
            said["fields"] = tuple(_without_places(found.field) for found in bad.field_violations)
    return said


def _without_places(path: str) -> str:
    return ".".join(part.partition("[")[0] for part in path.split("."))
