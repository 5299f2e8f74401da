import datetime

from buf.validate import validate_pb2 as _validate_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RouteState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUTE_STATE_UNSPECIFIED: _ClassVar[RouteState]
    ROUTE_STATE_SERVING: _ClassVar[RouteState]
    ROUTE_STATE_WAITING: _ClassVar[RouteState]
ROUTE_STATE_UNSPECIFIED: RouteState
ROUTE_STATE_SERVING: RouteState
ROUTE_STATE_WAITING: RouteState

class RouteTarget(_message.Message):
    __slots__ = ("container_name", "generation")
    CONTAINER_NAME_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    container_name: str
    generation: int
    def __init__(self, container_name: _Optional[str] = ..., generation: _Optional[int] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("vm_id", "user_id", "prefix", "target", "state", "epoch", "generation", "reason", "message", "revision", "update_time")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    user_id: str
    prefix: str
    target: RouteTarget
    state: RouteState
    epoch: int
    generation: int
    reason: str
    message: str
    revision: int
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, vm_id: _Optional[str] = ..., user_id: _Optional[str] = ..., prefix: _Optional[str] = ..., target: _Optional[_Union[RouteTarget, _Mapping]] = ..., state: _Optional[_Union[RouteState, str]] = ..., epoch: _Optional[int] = ..., generation: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., revision: _Optional[int] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
