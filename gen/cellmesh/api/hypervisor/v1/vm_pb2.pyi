import datetime

from buf.validate import validate_pb2 as _validate_pb2
from cellmesh.api.common.v1 import container_pb2 as _container_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VmState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VM_STATE_UNSPECIFIED: _ClassVar[VmState]
    VM_STATE_PENDING: _ClassVar[VmState]
    VM_STATE_STARTING: _ClassVar[VmState]
    VM_STATE_RUNNING: _ClassVar[VmState]
    VM_STATE_STOPPING: _ClassVar[VmState]
    VM_STATE_STOPPED: _ClassVar[VmState]
    VM_STATE_BACKOFF: _ClassVar[VmState]
    VM_STATE_FAILED: _ClassVar[VmState]
    VM_STATE_QUARANTINED: _ClassVar[VmState]
    VM_STATE_DELETING: _ClassVar[VmState]
    VM_STATE_DELETED: _ClassVar[VmState]

class DesiredState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DESIRED_STATE_UNSPECIFIED: _ClassVar[DesiredState]
    DESIRED_STATE_RUNNING: _ClassVar[DesiredState]
    DESIRED_STATE_STOPPED: _ClassVar[DesiredState]
    DESIRED_STATE_DELETED: _ClassVar[DesiredState]

class ColdStart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COLD_START_UNSPECIFIED: _ClassVar[ColdStart]
    COLD_START_ON_REQUEST: _ClassVar[ColdStart]
    COLD_START_NEVER: _ClassVar[ColdStart]
VM_STATE_UNSPECIFIED: VmState
VM_STATE_PENDING: VmState
VM_STATE_STARTING: VmState
VM_STATE_RUNNING: VmState
VM_STATE_STOPPING: VmState
VM_STATE_STOPPED: VmState
VM_STATE_BACKOFF: VmState
VM_STATE_FAILED: VmState
VM_STATE_QUARANTINED: VmState
VM_STATE_DELETING: VmState
VM_STATE_DELETED: VmState
DESIRED_STATE_UNSPECIFIED: DesiredState
DESIRED_STATE_RUNNING: DesiredState
DESIRED_STATE_STOPPED: DesiredState
DESIRED_STATE_DELETED: DesiredState
COLD_START_UNSPECIFIED: ColdStart
COLD_START_ON_REQUEST: ColdStart
COLD_START_NEVER: ColdStart

class VmSpec(_message.Message):
    __slots__ = ("guest_image", "vcpus", "memory_bytes", "data_disk_bytes", "restart_policy", "cold_start")
    GUEST_IMAGE_FIELD_NUMBER: _ClassVar[int]
    VCPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESTART_POLICY_FIELD_NUMBER: _ClassVar[int]
    COLD_START_FIELD_NUMBER: _ClassVar[int]
    guest_image: str
    vcpus: int
    memory_bytes: int
    data_disk_bytes: int
    restart_policy: _container_pb2.RestartPolicy
    cold_start: ColdStart
    def __init__(self, guest_image: _Optional[str] = ..., vcpus: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., data_disk_bytes: _Optional[int] = ..., restart_policy: _Optional[_Union[_container_pb2.RestartPolicy, _Mapping]] = ..., cold_start: _Optional[_Union[ColdStart, str]] = ...) -> None: ...

class Vm(_message.Message):
    __slots__ = ("vm_id", "user_id", "spec", "desired_state", "state", "epoch", "reason", "message", "revision", "restart_count", "create_time", "update_time", "running_time", "vmm_pid")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    DESIRED_STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    RESTART_COUNT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    RUNNING_TIME_FIELD_NUMBER: _ClassVar[int]
    VMM_PID_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    user_id: str
    spec: VmSpec
    desired_state: DesiredState
    state: VmState
    epoch: int
    reason: str
    message: str
    revision: int
    restart_count: int
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    running_time: _timestamp_pb2.Timestamp
    vmm_pid: int
    def __init__(self, vm_id: _Optional[str] = ..., user_id: _Optional[str] = ..., spec: _Optional[_Union[VmSpec, _Mapping]] = ..., desired_state: _Optional[_Union[DesiredState, str]] = ..., state: _Optional[_Union[VmState, str]] = ..., epoch: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., revision: _Optional[int] = ..., restart_count: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., running_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., vmm_pid: _Optional[int] = ...) -> None: ...
