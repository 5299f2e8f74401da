"""grpc.health.v1 by hand: one string in, one number out (https://github.com/grpc/grpc-proto/blob/master/grpc/health/v1/health.proto)."""

from enum import IntEnum

import grpc
import grpc.aio

from cellmesh.guest.containers import model
from cellmesh.guest.containers.registry import Containers
from cellmesh.guest.servicers.answer import Context

_SERVICE = "grpc.health.v1.Health"
_SERVICE_FIELD = b"\x0a"
_STATUS_FIELD = b"\x08"
_NAME_LIMIT = 127


class Serving(IntEnum):
    """HealthCheckResponse.ServingStatus."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


class HealthServicer:
    """Answers for the agent under the empty name, and for each container under its own."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers

    def handler(self) -> "grpc.GenericRpcHandler[str, Serving]":
        """Return what a server is given to serve this."""
        check = grpc.unary_unary_rpc_method_handler(
            self.check, request_deserializer=decode_request, response_serializer=encode_response
        )
        watch = grpc.unary_stream_rpc_method_handler(
            self.watch, request_deserializer=decode_request, response_serializer=encode_response
        )
        return grpc.method_handlers_generic_handler(_SERVICE, {"Check": check, "Watch": watch})

    async def check(self, name: str, context: Context) -> Serving:
        """Answer once; NOT_FOUND for a name that is no container's."""
        status = self._status(name)
        if status is Serving.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this VM has no container of that name")
        return status

    async def watch(self, name: str, context: Context) -> None:
        """Answer at once and after each change, until the caller leaves."""
        last = None
        while True:
            version = self._containers.changes.version
            status = self._status(name)
            if status is not last:
                await context.write(status)
                last = status
            await self._containers.changes.after(version)

    def _status(self, name: str) -> Serving:
        if not name:
            return Serving.SERVING
        for status in self._containers.statuses():
            if status.name == name:
                running = status.state is model.State.RUNNING
                well = running and status.health is model.Health.SERVING
                unknown = running and status.health is model.Health.UNKNOWN
                return Serving.SERVING if well else Serving.UNKNOWN if unknown else Serving.NOT_SERVING
        return Serving.SERVICE_UNKNOWN


def decode_request(message: bytes) -> str:
    """Return the service a HealthCheckRequest names; raises ValueError, which gRPC answers with INTERNAL."""
    if not message:
        return ""
    if message[:1] != _SERVICE_FIELD or message[1] > _NAME_LIMIT or len(message) != 2 + message[1]:
        raise ValueError("not a HealthCheckRequest")
    return message[2:].decode()


def encode_response(status: Serving) -> bytes:
    """Return a HealthCheckResponse."""
    return _STATUS_FIELD + bytes([status]) if status else b""
