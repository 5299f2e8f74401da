from buf.validate import validate_pb2 as _validate_pb2
from cellmesh.api.common.v1 import container_pb2 as _container_pb2
from cellmesh.api.common.v1 import exec_pb2 as _exec_pb2
from cellmesh.api.common.v1 import log_pb2 as _log_pb2
from cellmesh.api.hypervisor.v1 import container_pb2 as _container_pb2_1
from cellmesh.api.options.v1 import method_pb2 as _method_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StartContainerRequest(_message.Message):
    __slots__ = ("request_id", "vm_id", "container_name", "spec")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    vm_id: str
    container_name: str
    spec: _container_pb2.ContainerSpec
    def __init__(self, request_id: _Optional[str] = ..., vm_id: _Optional[str] = ..., container_name: _Optional[str] = ..., spec: _Optional[_Union[_container_pb2.ContainerSpec, _Mapping]] = ...) -> None: ...

class StartContainerResponse(_message.Message):
    __slots__ = ("container",)
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    container: _container_pb2_1.Container
    def __init__(self, container: _Optional[_Union[_container_pb2_1.Container, _Mapping]] = ...) -> None: ...

class StopContainerRequest(_message.Message):
    __slots__ = ("request_id", "vm_id", "container_name")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_NAME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    vm_id: str
    container_name: str
    def __init__(self, request_id: _Optional[str] = ..., vm_id: _Optional[str] = ..., container_name: _Optional[str] = ...) -> None: ...

class StopContainerResponse(_message.Message):
    __slots__ = ("container",)
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    container: _container_pb2_1.Container
    def __init__(self, container: _Optional[_Union[_container_pb2_1.Container, _Mapping]] = ...) -> None: ...

class RestartContainerRequest(_message.Message):
    __slots__ = ("request_id", "vm_id", "container_name")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_NAME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    vm_id: str
    container_name: str
    def __init__(self, request_id: _Optional[str] = ..., vm_id: _Optional[str] = ..., container_name: _Optional[str] = ...) -> None: ...

class RestartContainerResponse(_message.Message):
    __slots__ = ("container",)
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    container: _container_pb2_1.Container
    def __init__(self, container: _Optional[_Union[_container_pb2_1.Container, _Mapping]] = ...) -> None: ...

class DeleteContainerRequest(_message.Message):
    __slots__ = ("request_id", "vm_id", "container_name", "force", "persistent_paths")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_NAME_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    PERSISTENT_PATHS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    vm_id: str
    container_name: str
    force: bool
    persistent_paths: bool
    def __init__(self, request_id: _Optional[str] = ..., vm_id: _Optional[str] = ..., container_name: _Optional[str] = ..., force: _Optional[bool] = ..., persistent_paths: _Optional[bool] = ...) -> None: ...

class DeleteContainerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetContainerRequest(_message.Message):
    __slots__ = ("vm_id", "container_name")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_NAME_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    container_name: str
    def __init__(self, vm_id: _Optional[str] = ..., container_name: _Optional[str] = ...) -> None: ...

class GetContainerResponse(_message.Message):
    __slots__ = ("container",)
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    container: _container_pb2_1.Container
    def __init__(self, container: _Optional[_Union[_container_pb2_1.Container, _Mapping]] = ...) -> None: ...

class ListContainersRequest(_message.Message):
    __slots__ = ("vm_id",)
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    def __init__(self, vm_id: _Optional[str] = ...) -> None: ...

class ListContainersResponse(_message.Message):
    __slots__ = ("containers",)
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    containers: _containers.RepeatedCompositeFieldContainer[_container_pb2_1.Container]
    def __init__(self, containers: _Optional[_Iterable[_Union[_container_pb2_1.Container, _Mapping]]] = ...) -> None: ...

class ExecRequest(_message.Message):
    __slots__ = ("input",)
    INPUT_FIELD_NUMBER: _ClassVar[int]
    input: _exec_pb2.ExecInput
    def __init__(self, input: _Optional[_Union[_exec_pb2.ExecInput, _Mapping]] = ...) -> None: ...

class ExecResponse(_message.Message):
    __slots__ = ("output",)
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    output: _exec_pb2.ExecOutput
    def __init__(self, output: _Optional[_Union[_exec_pb2.ExecOutput, _Mapping]] = ...) -> None: ...

class StreamLogsRequest(_message.Message):
    __slots__ = ("vm_id", "container_name", "generation", "offset", "follow")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_NAME_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    container_name: str
    generation: int
    offset: int
    follow: bool
    def __init__(self, vm_id: _Optional[str] = ..., container_name: _Optional[str] = ..., generation: _Optional[int] = ..., offset: _Optional[int] = ..., follow: _Optional[bool] = ...) -> None: ...

class StreamLogsResponse(_message.Message):
    __slots__ = ("generation", "chunks", "next_offset", "skipped_bytes")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    generation: int
    chunks: _containers.RepeatedCompositeFieldContainer[_log_pb2.LogChunk]
    next_offset: int
    skipped_bytes: int
    def __init__(self, generation: _Optional[int] = ..., chunks: _Optional[_Iterable[_Union[_log_pb2.LogChunk, _Mapping]]] = ..., next_offset: _Optional[int] = ..., skipped_bytes: _Optional[int] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ("vm_id", "container_name")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_NAME_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    container_name: str
    def __init__(self, vm_id: _Optional[str] = ..., container_name: _Optional[str] = ...) -> None: ...

class GetStatsResponse(_message.Message):
    __slots__ = ("stats",)
    STATS_FIELD_NUMBER: _ClassVar[int]
    stats: _container_pb2.ContainerStats
    def __init__(self, stats: _Optional[_Union[_container_pb2.ContainerStats, _Mapping]] = ...) -> None: ...
