import datetime

from buf.validate import validate_pb2 as _validate_pb2
from cellmesh.api.common.v1 import page_pb2 as _page_pb2
from cellmesh.api.hypervisor.v1 import route_pb2 as _route_pb2
from cellmesh.api.hypervisor.v1 import vm_pb2 as _vm_pb2
from cellmesh.api.options.v1 import method_pb2 as _method_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetRouteRequest(_message.Message):
    __slots__ = ("vm_id", "prefix")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    prefix: str
    def __init__(self, vm_id: _Optional[str] = ..., prefix: _Optional[str] = ...) -> None: ...

class GetRouteResponse(_message.Message):
    __slots__ = ("route",)
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    route: _route_pb2.Route
    def __init__(self, route: _Optional[_Union[_route_pb2.Route, _Mapping]] = ...) -> None: ...

class ListRoutesRequest(_message.Message):
    __slots__ = ("page", "vm_id")
    PAGE_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    page: _page_pb2.PageRequest
    vm_id: str
    def __init__(self, page: _Optional[_Union[_page_pb2.PageRequest, _Mapping]] = ..., vm_id: _Optional[str] = ...) -> None: ...

class ListRoutesResponse(_message.Message):
    __slots__ = ("routes", "next_page_token")
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    routes: _containers.RepeatedCompositeFieldContainer[_route_pb2.Route]
    next_page_token: str
    def __init__(self, routes: _Optional[_Iterable[_Union[_route_pb2.Route, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class SwitchRouteRequest(_message.Message):
    __slots__ = ("request_id", "vm_id", "prefix", "target", "expected_revision", "drain_timeout")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    DRAIN_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    vm_id: str
    prefix: str
    target: _route_pb2.RouteTarget
    expected_revision: int
    drain_timeout: _duration_pb2.Duration
    def __init__(self, request_id: _Optional[str] = ..., vm_id: _Optional[str] = ..., prefix: _Optional[str] = ..., target: _Optional[_Union[_route_pb2.RouteTarget, _Mapping]] = ..., expected_revision: _Optional[int] = ..., drain_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SwitchRouteResponse(_message.Message):
    __slots__ = ("route",)
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    route: _route_pb2.Route
    def __init__(self, route: _Optional[_Union[_route_pb2.Route, _Mapping]] = ...) -> None: ...

class WatchRoutesRequest(_message.Message):
    __slots__ = ("vm_id",)
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    def __init__(self, vm_id: _Optional[str] = ...) -> None: ...

class WatchRoutesResponse(_message.Message):
    __slots__ = ("route", "removed", "bookmark")
    class Bookmark(_message.Message):
        __slots__ = ("caught_up",)
        CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
        caught_up: bool
        def __init__(self, caught_up: _Optional[bool] = ...) -> None: ...
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    BOOKMARK_FIELD_NUMBER: _ClassVar[int]
    route: _route_pb2.Route
    removed: _route_pb2.Route
    bookmark: WatchRoutesResponse.Bookmark
    def __init__(self, route: _Optional[_Union[_route_pb2.Route, _Mapping]] = ..., removed: _Optional[_Union[_route_pb2.Route, _Mapping]] = ..., bookmark: _Optional[_Union[WatchRoutesResponse.Bookmark, _Mapping]] = ...) -> None: ...

class WatchTrafficRequest(_message.Message):
    __slots__ = ("vm_id",)
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    def __init__(self, vm_id: _Optional[str] = ...) -> None: ...

class WatchTrafficResponse(_message.Message):
    __slots__ = ("traffic",)
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    traffic: _containers.RepeatedCompositeFieldContainer[RouteTraffic]
    def __init__(self, traffic: _Optional[_Iterable[_Union[RouteTraffic, _Mapping]]] = ...) -> None: ...

class RouteTraffic(_message.Message):
    __slots__ = ("vm_id", "user_id", "prefix", "requests", "server_errors", "active", "received_bytes", "sent_bytes")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    SERVER_ERRORS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    user_id: str
    prefix: str
    requests: int
    server_errors: int
    active: int
    received_bytes: int
    sent_bytes: int
    def __init__(self, vm_id: _Optional[str] = ..., user_id: _Optional[str] = ..., prefix: _Optional[str] = ..., requests: _Optional[int] = ..., server_errors: _Optional[int] = ..., active: _Optional[int] = ..., received_bytes: _Optional[int] = ..., sent_bytes: _Optional[int] = ...) -> None: ...

class ActivateRouteRequest(_message.Message):
    __slots__ = ("user_id", "prefix")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    prefix: str
    def __init__(self, user_id: _Optional[str] = ..., prefix: _Optional[str] = ...) -> None: ...

class ActivateRouteResponse(_message.Message):
    __slots__ = ("route", "vm_state", "retry_after")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    VM_STATE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    route: _route_pb2.Route
    vm_state: _vm_pb2.VmState
    retry_after: _duration_pb2.Duration
    def __init__(self, route: _Optional[_Union[_route_pb2.Route, _Mapping]] = ..., vm_state: _Optional[_Union[_vm_pb2.VmState, str]] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
