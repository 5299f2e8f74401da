import datetime

from buf.validate import validate_pb2 as _validate_pb2
from cellmesh.api.options.v1 import method_pb2 as _method_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Node(_message.Message):
    __slots__ = ("node_id", "version", "vmm_version", "default_guest_image", "draining", "vm_count", "running_vm_count", "max_vms", "memory_committed_bytes", "memory_capacity_bytes", "start_time", "warnings")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VMM_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_GUEST_IMAGE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    VM_COUNT_FIELD_NUMBER: _ClassVar[int]
    RUNNING_VM_COUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_VMS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_COMMITTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    version: str
    vmm_version: str
    default_guest_image: str
    draining: bool
    vm_count: int
    running_vm_count: int
    max_vms: int
    memory_committed_bytes: int
    memory_capacity_bytes: int
    start_time: _timestamp_pb2.Timestamp
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, node_id: _Optional[str] = ..., version: _Optional[str] = ..., vmm_version: _Optional[str] = ..., default_guest_image: _Optional[str] = ..., draining: _Optional[bool] = ..., vm_count: _Optional[int] = ..., running_vm_count: _Optional[int] = ..., max_vms: _Optional[int] = ..., memory_committed_bytes: _Optional[int] = ..., memory_capacity_bytes: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class GetNodeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetNodeResponse(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: Node
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ...) -> None: ...

class DrainNodeRequest(_message.Message):
    __slots__ = ("request_id", "draining")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    draining: bool
    def __init__(self, request_id: _Optional[str] = ..., draining: _Optional[bool] = ...) -> None: ...

class DrainNodeResponse(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: Node
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ...) -> None: ...
