from buf.validate import validate_pb2 as _validate_pb2
from cellmesh.api.common.v1 import page_pb2 as _page_pb2
from cellmesh.api.hypervisor.v1 import event_pb2 as _event_pb2
from cellmesh.api.options.v1 import method_pb2 as _method_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListEventsRequest(_message.Message):
    __slots__ = ("page", "vm_id", "after_sequence")
    PAGE_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    page: _page_pb2.PageRequest
    vm_id: str
    after_sequence: int
    def __init__(self, page: _Optional[_Union[_page_pb2.PageRequest, _Mapping]] = ..., vm_id: _Optional[str] = ..., after_sequence: _Optional[int] = ...) -> None: ...

class ListEventsResponse(_message.Message):
    __slots__ = ("events", "next_page_token")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_event_pb2.Event]
    next_page_token: str
    def __init__(self, events: _Optional[_Iterable[_Union[_event_pb2.Event, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchEventsRequest(_message.Message):
    __slots__ = ("vm_id", "resume_token", "from_beginning")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FROM_BEGINNING_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    resume_token: bytes
    from_beginning: bool
    def __init__(self, vm_id: _Optional[str] = ..., resume_token: _Optional[bytes] = ..., from_beginning: _Optional[bool] = ...) -> None: ...

class WatchEventsResponse(_message.Message):
    __slots__ = ("event", "bookmark", "resume_token")
    class Bookmark(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    EVENT_FIELD_NUMBER: _ClassVar[int]
    BOOKMARK_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    event: _event_pb2.Event
    bookmark: WatchEventsResponse.Bookmark
    resume_token: bytes
    def __init__(self, event: _Optional[_Union[_event_pb2.Event, _Mapping]] = ..., bookmark: _Optional[_Union[WatchEventsResponse.Bookmark, _Mapping]] = ..., resume_token: _Optional[bytes] = ...) -> None: ...
