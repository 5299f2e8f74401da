import datetime

from buf.validate import validate_pb2 as _validate_pb2
from cellmesh.api.common.v1 import container_pb2 as _container_pb2
from cellmesh.api.options.v1 import method_pb2 as _method_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ("boot_id", "agent_version", "kernel_release", "protocol_versions")
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    KERNEL_RELEASE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    boot_id: str
    agent_version: str
    kernel_release: str
    protocol_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, boot_id: _Optional[str] = ..., agent_version: _Optional[str] = ..., kernel_release: _Optional[str] = ..., protocol_versions: _Optional[_Iterable[int]] = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("vm_id", "epoch", "protocol_version", "discard_layers", "heartbeat_interval", "time")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DISCARD_LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    epoch: int
    protocol_version: int
    discard_layers: bool
    heartbeat_interval: _duration_pb2.Duration
    time: _timestamp_pb2.Timestamp
    def __init__(self, vm_id: _Optional[str] = ..., epoch: _Optional[int] = ..., protocol_version: _Optional[int] = ..., discard_layers: _Optional[bool] = ..., heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("vm_id", "epoch", "sequence", "containers", "dropped_log_bytes")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    epoch: int
    sequence: int
    containers: _containers.RepeatedCompositeFieldContainer[_container_pb2.ContainerStatus]
    dropped_log_bytes: int
    def __init__(self, vm_id: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., containers: _Optional[_Iterable[_Union[_container_pb2.ContainerStatus, _Mapping]]] = ..., dropped_log_bytes: _Optional[int] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("acknowledged_sequence",)
    ACKNOWLEDGED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    acknowledged_sequence: int
    def __init__(self, acknowledged_sequence: _Optional[int] = ...) -> None: ...
