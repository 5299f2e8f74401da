from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClusterLoadAssignment(_message.Message):
    __slots__ = ("cluster_name", "endpoints")
    class LocalityLbEndpoints(_message.Message):
        __slots__ = ("lb_endpoints",)
        LB_ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
        lb_endpoints: _containers.RepeatedCompositeFieldContainer[ClusterLoadAssignment.LbEndpoint]
        def __init__(self, lb_endpoints: _Optional[_Iterable[_Union[ClusterLoadAssignment.LbEndpoint, _Mapping]]] = ...) -> None: ...
    class LbEndpoint(_message.Message):
        __slots__ = ("endpoint", "metadata")
        ENDPOINT_FIELD_NUMBER: _ClassVar[int]
        METADATA_FIELD_NUMBER: _ClassVar[int]
        endpoint: ClusterLoadAssignment.Endpoint
        metadata: ClusterLoadAssignment.Metadata
        def __init__(self, endpoint: _Optional[_Union[ClusterLoadAssignment.Endpoint, _Mapping]] = ..., metadata: _Optional[_Union[ClusterLoadAssignment.Metadata, _Mapping]] = ...) -> None: ...
    class Endpoint(_message.Message):
        __slots__ = ("address",)
        ADDRESS_FIELD_NUMBER: _ClassVar[int]
        address: ClusterLoadAssignment.Address
        def __init__(self, address: _Optional[_Union[ClusterLoadAssignment.Address, _Mapping]] = ...) -> None: ...
    class Address(_message.Message):
        __slots__ = ("pipe",)
        PIPE_FIELD_NUMBER: _ClassVar[int]
        pipe: ClusterLoadAssignment.Pipe
        def __init__(self, pipe: _Optional[_Union[ClusterLoadAssignment.Pipe, _Mapping]] = ...) -> None: ...
    class Pipe(_message.Message):
        __slots__ = ("path",)
        PATH_FIELD_NUMBER: _ClassVar[int]
        path: str
        def __init__(self, path: _Optional[str] = ...) -> None: ...
    class Metadata(_message.Message):
        __slots__ = ("filter_metadata",)
        class FilterMetadataEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: _struct_pb2.Struct
            def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...
        FILTER_METADATA_FIELD_NUMBER: _ClassVar[int]
        filter_metadata: _containers.MessageMap[str, _struct_pb2.Struct]
        def __init__(self, filter_metadata: _Optional[_Mapping[str, _struct_pb2.Struct]] = ...) -> None: ...
    CLUSTER_NAME_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    cluster_name: str
    endpoints: _containers.RepeatedCompositeFieldContainer[ClusterLoadAssignment.LocalityLbEndpoints]
    def __init__(self, cluster_name: _Optional[str] = ..., endpoints: _Optional[_Iterable[_Union[ClusterLoadAssignment.LocalityLbEndpoints, _Mapping]]] = ...) -> None: ...
