"""Every contract of ours, loaded; a service that answers any RPC of them, and a way to call any."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from cellmesh.mesh import status
from cellmesh.mesh.errors import DownstreamUnavailable, MeshError

# gRPC's client forgets why a stream was refused if it is still writing its first message then.
_ASKED_AT_MOST = 5
ROOT = Path(__file__).resolve().parents[2]
GEN = ROOT / "gen"


def load_contracts() -> list[FileDescriptor]:
    """Import every generated module of ours."""
    modules = sorted(GEN.glob("cellmesh/**/*_pb2.py"))
    names = [".".join(path.relative_to(GEN).with_suffix("").parts) for path in modules]
    return [importlib.import_module(name).DESCRIPTOR for name in names]


FILES = load_contracts()
METHODS: list[MethodDescriptor] = [
    method for file in FILES for service in file.services_by_name.values() for method in service.methods
]
# Envoy's own services: we keep its names and numbers, so that their messages are shaped as it wants, not as we do.
ENVOYS: list[MethodDescriptor] = [method for method in METHODS if method.full_name.startswith("envoy.")]
OWN: list[MethodDescriptor] = [method for method in METHODS if method not in ENVOYS]


def path_of(method: MethodDescriptor) -> str:
    """Write a method as gRPC does."""
    return f"/{method.containing_service.full_name}/{method.name}"


Behavior = Callable[[grpc.aio.ServicerContext[Any, Any]], Any]


@dataclass(slots=True)
class AnyService:
    """Serves every RPC there is: notes the call, awaits `behave`, answers with an empty message."""

    behave: Behavior
    calls: list[str] = field(default_factory=list)

    def register(self, server: grpc.aio.Server) -> None:
        """Add every service."""
        by_service: dict[str, dict[str, Any]] = {}
        for method in METHODS:
            by_service.setdefault(method.containing_service.full_name, {})[method.name] = self._handler(method)
        for name, handlers in by_service.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
            server.add_registered_method_handlers(name, handlers)  # type: ignore[attr-defined]  # not in the stub

    def _handler(self, method: MethodDescriptor) -> Any:
        answer = GetMessageClass(method.output_type)()

        async def unary(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
            if method.client_streaming:
                request = await anext(request)
            assert isinstance(request, GetMessageClass(method.input_type))
            self.calls.append(path_of(method))
            await self.behave(context)
            return answer

        async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Message]:
            yield await unary(request, context)

        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        factory = getattr(grpc, f"{kind}_rpc_method_handler")
        return factory(
            stream if method.server_streaming else unary,
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )


async def invoke(channel: grpc.aio.Channel, method: MethodDescriptor, request: Message, **options: Any) -> Message:
    """Call any RPC with one request and return its first answer."""
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, kind)(
        path_of(method),
        request_serializer=GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )

    async def requests() -> AsyncIterator[Message]:
        yield request

    called = call(requests() if method.client_streaming else request, **options)
    if not method.server_streaming:
        answer: Message = await called
        return answer
    async for first in called:
        called.cancel()
        assert isinstance(first, Message)
        return first
    raise AssertionError(f"{path_of(method)} ended without an answer")


async def refusal(
    channel: grpc.aio.Channel, method: MethodDescriptor, request: Message, **options: Any
) -> MeshError | None:
    """Call any RPC with one request and return the error it ended with, or None if there was an answer."""
    error: MeshError | None = None
    for _ in range(_ASKED_AT_MOST):
        try:
            await invoke(channel, method, request, **options)
        except grpc.aio.AioRpcError as refused:
            error = status.from_rpc_error(refused)
        else:
            return None
        if not (method.client_streaming and isinstance(error, DownstreamUnavailable)):
            break
    return error
