"""Server reflection in both versions that clients speak, with every symbol a client may describe.

grpcio-reflection serves `grpc.reflection.v1alpha` only, and finds files by messages, enums and services but not by
their methods, fields and values. The messages of `grpc.reflection.v1` are the same on the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Serve reflection of `services`, given by full name, and of reflection itself."""
    pool = descriptor_pool.Default()
    _add_version_1(pool)
    servicer = reflection.aio.ReflectionServicer(  # type: ignore[attr-defined]  # public, not in the stub
        (*services, *SERVICES), pool=_SymbolPool(pool)
    )
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    generic = grpc.method_handlers_generic_handler(SERVICES[0], {"ServerReflectionInfo": handler})
    server.add_generic_rpc_handlers((generic,))


class _SymbolPool:
    """A descriptor pool that also finds the file of a method, a field, a oneof or an enum value."""

    def __init__(self, pool: descriptor_pool.DescriptorPool) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """Return the file that defines a symbol, given by full name; raises KeyError."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            parent, _, member = symbol.rpartition(".")
            file = self._pool.FindFileContainingSymbol(parent)
            if member not in _members(self._pool, parent):
                raise
            return file


def _members(pool: descriptor_pool.DescriptorPool, parent: str) -> set[str]:
    """Return the names that a service, message or enum defines."""
    for find, kinds in (
        (pool.FindServiceByName, ("methods_by_name",)),
        (pool.FindMessageTypeByName, ("fields_by_name", "oneofs_by_name")),
        (pool.FindEnumTypeByName, ("values_by_name",)),
    ):
        try:
            found: Any = find(parent)
        except KeyError:
            continue
        return {name for kind in kinds for name in getattr(found, kind)}
    return set()


def _add_version_1(pool: descriptor_pool.DescriptorPool) -> None:
    """Describe `grpc.reflection.v1`: the contract of v1alpha under its own package."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name = file.name.replace("v1alpha", "v1")
    file.package = "grpc.reflection.v1"
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace("v1alpha", "v1")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace("v1alpha", "v1")
        method.output_type = method.output_type.replace("v1alpha", "v1")
    pool.AddSerializedFile(file.SerializeToString())
