import datetime

from buf.validate import validate_pb2 as _validate_pb2
from cellmesh.api.common.v1 import page_pb2 as _page_pb2
from cellmesh.api.options.v1 import method_pb2 as _method_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Decision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DECISION_UNSPECIFIED: _ClassVar[Decision]
    DECISION_ALLOWED: _ClassVar[Decision]
    DECISION_DENIED: _ClassVar[Decision]
    DECISION_FAILED: _ClassVar[Decision]
DECISION_UNSPECIFIED: Decision
DECISION_ALLOWED: Decision
DECISION_DENIED: Decision
DECISION_FAILED: Decision

class AuditEntry(_message.Message):
    __slots__ = ("sequence", "time", "caller_role", "caller_name", "user_id", "action", "resource", "decision", "trace_id", "facts", "hash")
    class Fact(_message.Message):
        __slots__ = ("name", "number", "flag", "word")
        NAME_FIELD_NUMBER: _ClassVar[int]
        NUMBER_FIELD_NUMBER: _ClassVar[int]
        FLAG_FIELD_NUMBER: _ClassVar[int]
        WORD_FIELD_NUMBER: _ClassVar[int]
        name: str
        number: int
        flag: bool
        word: str
        def __init__(self, name: _Optional[str] = ..., number: _Optional[int] = ..., flag: _Optional[bool] = ..., word: _Optional[str] = ...) -> None: ...
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    CALLER_ROLE_FIELD_NUMBER: _ClassVar[int]
    CALLER_NAME_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    time: _timestamp_pb2.Timestamp
    caller_role: str
    caller_name: str
    user_id: str
    action: str
    resource: str
    decision: Decision
    trace_id: str
    facts: _containers.RepeatedCompositeFieldContainer[AuditEntry.Fact]
    hash: str
    def __init__(self, sequence: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., caller_role: _Optional[str] = ..., caller_name: _Optional[str] = ..., user_id: _Optional[str] = ..., action: _Optional[str] = ..., resource: _Optional[str] = ..., decision: _Optional[_Union[Decision, str]] = ..., trace_id: _Optional[str] = ..., facts: _Optional[_Iterable[_Union[AuditEntry.Fact, _Mapping]]] = ..., hash: _Optional[str] = ...) -> None: ...

class AuditFilter(_message.Message):
    __slots__ = ("user_id", "resource_prefix", "decision")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_PREFIX_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    resource_prefix: str
    decision: Decision
    def __init__(self, user_id: _Optional[str] = ..., resource_prefix: _Optional[str] = ..., decision: _Optional[_Union[Decision, str]] = ...) -> None: ...

class ListAuditRequest(_message.Message):
    __slots__ = ("page", "filter")
    PAGE_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    page: _page_pb2.PageRequest
    filter: AuditFilter
    def __init__(self, page: _Optional[_Union[_page_pb2.PageRequest, _Mapping]] = ..., filter: _Optional[_Union[AuditFilter, _Mapping]] = ...) -> None: ...

class ListAuditResponse(_message.Message):
    __slots__ = ("entries", "next_page_token")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    next_page_token: str
    def __init__(self, entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchAuditRequest(_message.Message):
    __slots__ = ("filter", "resume_token")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    filter: AuditFilter
    resume_token: bytes
    def __init__(self, filter: _Optional[_Union[AuditFilter, _Mapping]] = ..., resume_token: _Optional[bytes] = ...) -> None: ...

class WatchAuditResponse(_message.Message):
    __slots__ = ("entry", "bookmark", "resume_token")
    class Bookmark(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    BOOKMARK_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entry: AuditEntry
    bookmark: WatchAuditResponse.Bookmark
    resume_token: bytes
    def __init__(self, entry: _Optional[_Union[AuditEntry, _Mapping]] = ..., bookmark: _Optional[_Union[WatchAuditResponse.Bookmark, _Mapping]] = ..., resume_token: _Optional[bytes] = ...) -> None: ...

class VerifyAuditRequest(_message.Message):
    __slots__ = ("after_sequence",)
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    after_sequence: int
    def __init__(self, after_sequence: _Optional[int] = ...) -> None: ...

class VerifyAuditResponse(_message.Message):
    __slots__ = ("fault", "wrong_sequence", "entry_count", "first_sequence", "signed_sequence", "sign_time")
    FAULT_FIELD_NUMBER: _ClassVar[int]
    WRONG_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ENTRY_COUNT_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SIGNED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SIGN_TIME_FIELD_NUMBER: _ClassVar[int]
    fault: str
    wrong_sequence: int
    entry_count: int
    first_sequence: int
    signed_sequence: int
    sign_time: _timestamp_pb2.Timestamp
    def __init__(self, fault: _Optional[str] = ..., wrong_sequence: _Optional[int] = ..., entry_count: _Optional[int] = ..., first_sequence: _Optional[int] = ..., signed_sequence: _Optional[int] = ..., sign_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
