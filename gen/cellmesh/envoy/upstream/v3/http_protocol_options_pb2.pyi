import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import wrappers_pb2 as _wrappers_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HttpProtocolOptions(_message.Message):
    __slots__ = ("common_http_protocol_options", "explicit_http_config")
    class CommonOptions(_message.Message):
        __slots__ = ("idle_timeout", "max_headers_count")
        IDLE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
        MAX_HEADERS_COUNT_FIELD_NUMBER: _ClassVar[int]
        idle_timeout: _duration_pb2.Duration
        max_headers_count: _wrappers_pb2.UInt32Value
        def __init__(self, idle_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_headers_count: _Optional[_Union[_wrappers_pb2.UInt32Value, _Mapping]] = ...) -> None: ...
    class ExplicitHttpConfig(_message.Message):
        __slots__ = ("http_protocol_options",)
        HTTP_PROTOCOL_OPTIONS_FIELD_NUMBER: _ClassVar[int]
        http_protocol_options: HttpProtocolOptions.Http1Options
        def __init__(self, http_protocol_options: _Optional[_Union[HttpProtocolOptions.Http1Options, _Mapping]] = ...) -> None: ...
    class Http1Options(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    COMMON_HTTP_PROTOCOL_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    EXPLICIT_HTTP_CONFIG_FIELD_NUMBER: _ClassVar[int]
    common_http_protocol_options: HttpProtocolOptions.CommonOptions
    explicit_http_config: HttpProtocolOptions.ExplicitHttpConfig
    def __init__(self, common_http_protocol_options: _Optional[_Union[HttpProtocolOptions.CommonOptions, _Mapping]] = ..., explicit_http_config: _Optional[_Union[HttpProtocolOptions.ExplicitHttpConfig, _Mapping]] = ...) -> None: ...
