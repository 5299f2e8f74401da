import datetime

from cellmesh.api.common.v1 import container_pb2 as _container_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Container(_message.Message):
    __slots__ = ("vm_id", "container_name", "spec", "desired_state", "generation", "epoch", "status", "create_time", "update_time")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    DESIRED_STATE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    container_name: str
    spec: _container_pb2.ContainerSpec
    desired_state: _container_pb2.ContainerState
    generation: int
    epoch: int
    status: _container_pb2.ContainerStatus
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, vm_id: _Optional[str] = ..., container_name: _Optional[str] = ..., spec: _Optional[_Union[_container_pb2.ContainerSpec, _Mapping]] = ..., desired_state: _Optional[_Union[_container_pb2.ContainerState, str]] = ..., generation: _Optional[int] = ..., epoch: _Optional[int] = ..., status: _Optional[_Union[_container_pb2.ContainerStatus, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
