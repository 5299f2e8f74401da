import datetime

from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_OPERATOR: _ClassVar[Role]
    ROLE_HYPERVISOR: _ClassVar[Role]
    ROLE_AUTH: _ClassVar[Role]
    ROLE_SECRETS: _ClassVar[Role]
    ROLE_MEMORY: _ClassVar[Role]
    ROLE_GUEST_AGENT: _ClassVar[Role]
    ROLE_SERVICE: _ClassVar[Role]
    ROLE_EDGE: _ClassVar[Role]

class RetryClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RETRY_CLASS_UNSPECIFIED: _ClassVar[RetryClass]
    RETRY_CLASS_NONE: _ClassVar[RetryClass]
    RETRY_CLASS_SAFE: _ClassVar[RetryClass]
    RETRY_CLASS_REQUEST_ID: _ClassVar[RetryClass]

class ActsForUser(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTS_FOR_USER_UNSPECIFIED: _ClassVar[ActsForUser]
    ACTS_FOR_USER_NONE: _ClassVar[ActsForUser]
    ACTS_FOR_USER_OPTIONAL: _ClassVar[ActsForUser]
    ACTS_FOR_USER_REQUIRED: _ClassVar[ActsForUser]

class UserField(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    USER_FIELD_UNSPECIFIED: _ClassVar[UserField]
    USER_FIELD_ACTING: _ClassVar[UserField]
    USER_FIELD_SUBJECT: _ClassVar[UserField]
ROLE_UNSPECIFIED: Role
ROLE_OPERATOR: Role
ROLE_HYPERVISOR: Role
ROLE_AUTH: Role
ROLE_SECRETS: Role
ROLE_MEMORY: Role
ROLE_GUEST_AGENT: Role
ROLE_SERVICE: Role
ROLE_EDGE: Role
RETRY_CLASS_UNSPECIFIED: RetryClass
RETRY_CLASS_NONE: RetryClass
RETRY_CLASS_SAFE: RetryClass
RETRY_CLASS_REQUEST_ID: RetryClass
ACTS_FOR_USER_UNSPECIFIED: ActsForUser
ACTS_FOR_USER_NONE: ActsForUser
ACTS_FOR_USER_OPTIONAL: ActsForUser
ACTS_FOR_USER_REQUIRED: ActsForUser
USER_FIELD_UNSPECIFIED: UserField
USER_FIELD_ACTING: UserField
USER_FIELD_SUBJECT: UserField
METHOD_FIELD_NUMBER: _ClassVar[int]
method: _descriptor.FieldDescriptor
USER_FIELD_NUMBER: _ClassVar[int]
user: _descriptor.FieldDescriptor

class RetryBudget(_message.Message):
    __slots__ = ("max_attempts", "percent")
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    max_attempts: int
    percent: int
    def __init__(self, max_attempts: _Optional[int] = ..., percent: _Optional[int] = ...) -> None: ...

class MethodPolicy(_message.Message):
    __slots__ = ("default_deadline", "max_deadline", "retry", "retry_budget", "callers", "acts_for_user")
    DEFAULT_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    MAX_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    RETRY_BUDGET_FIELD_NUMBER: _ClassVar[int]
    CALLERS_FIELD_NUMBER: _ClassVar[int]
    ACTS_FOR_USER_FIELD_NUMBER: _ClassVar[int]
    default_deadline: _duration_pb2.Duration
    max_deadline: _duration_pb2.Duration
    retry: RetryClass
    retry_budget: RetryBudget
    callers: _containers.RepeatedScalarFieldContainer[Role]
    acts_for_user: ActsForUser
    def __init__(self, default_deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., retry: _Optional[_Union[RetryClass, str]] = ..., retry_budget: _Optional[_Union[RetryBudget, _Mapping]] = ..., callers: _Optional[_Iterable[_Union[Role, str]]] = ..., acts_for_user: _Optional[_Union[ActsForUser, str]] = ...) -> None: ...
