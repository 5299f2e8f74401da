from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REASON_UNSPECIFIED: _ClassVar[ErrorReason]
    ERROR_REASON_WRONG_EPOCH: _ClassVar[ErrorReason]
    ERROR_REASON_OLD_GENERATION: _ClassVar[ErrorReason]
    ERROR_REASON_IMAGE_NOT_ATTACHED: _ClassVar[ErrorReason]
    ERROR_REASON_CONTAINER_START_FAILED: _ClassVar[ErrorReason]
    ERROR_REASON_PROVIDER_KEY_PRESENT: _ClassVar[ErrorReason]
    ERROR_REASON_TOO_MANY_CONTAINERS: _ClassVar[ErrorReason]
    ERROR_REASON_CONTAINER_NOT_FOUND: _ClassVar[ErrorReason]
    ERROR_REASON_CONTAINER_NOT_RUNNING: _ClassVar[ErrorReason]
    ERROR_REASON_GENERATION_NOT_FOUND: _ClassVar[ErrorReason]
    ERROR_REASON_EXEC_NOT_FOUND: _ClassVar[ErrorReason]
    ERROR_REASON_EXEC_START_FAILED: _ClassVar[ErrorReason]
    ERROR_REASON_EXEC_OFFSET_GONE: _ClassVar[ErrorReason]
    ERROR_REASON_TOO_MANY_EXECS: _ClassVar[ErrorReason]
    ERROR_REASON_EXEC_ATTACHED_ELSEWHERE: _ClassVar[ErrorReason]
    ERROR_REASON_GUEST_REBOOTED: _ClassVar[ErrorReason]
    ERROR_REASON_VM_NOT_STARTING: _ClassVar[ErrorReason]
    ERROR_REASON_TOO_MANY_REPORTS: _ClassVar[ErrorReason]
ERROR_REASON_UNSPECIFIED: ErrorReason
ERROR_REASON_WRONG_EPOCH: ErrorReason
ERROR_REASON_OLD_GENERATION: ErrorReason
ERROR_REASON_IMAGE_NOT_ATTACHED: ErrorReason
ERROR_REASON_CONTAINER_START_FAILED: ErrorReason
ERROR_REASON_PROVIDER_KEY_PRESENT: ErrorReason
ERROR_REASON_TOO_MANY_CONTAINERS: ErrorReason
ERROR_REASON_CONTAINER_NOT_FOUND: ErrorReason
ERROR_REASON_CONTAINER_NOT_RUNNING: ErrorReason
ERROR_REASON_GENERATION_NOT_FOUND: ErrorReason
ERROR_REASON_EXEC_NOT_FOUND: ErrorReason
ERROR_REASON_EXEC_START_FAILED: ErrorReason
ERROR_REASON_EXEC_OFFSET_GONE: ErrorReason
ERROR_REASON_TOO_MANY_EXECS: ErrorReason
ERROR_REASON_EXEC_ATTACHED_ELSEWHERE: ErrorReason
ERROR_REASON_GUEST_REBOOTED: ErrorReason
ERROR_REASON_VM_NOT_STARTING: ErrorReason
ERROR_REASON_TOO_MANY_REPORTS: ErrorReason
