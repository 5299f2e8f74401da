import datetime

from buf.validate import validate_pb2 as _validate_pb2
from cellmesh.api.common.v1 import container_pb2 as _container_pb2
from cellmesh.api.common.v1 import health_pb2 as _health_pb2
from cellmesh.api.common.v1 import page_pb2 as _page_pb2
from cellmesh.api.hypervisor.v1 import vm_pb2 as _vm_pb2
from cellmesh.api.options.v1 import method_pb2 as _method_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateVmRequest(_message.Message):
    __slots__ = ("request_id", "user_id", "spec")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    user_id: str
    spec: _vm_pb2.VmSpec
    def __init__(self, request_id: _Optional[str] = ..., user_id: _Optional[str] = ..., spec: _Optional[_Union[_vm_pb2.VmSpec, _Mapping]] = ...) -> None: ...

class CreateVmResponse(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: _vm_pb2.Vm
    def __init__(self, vm: _Optional[_Union[_vm_pb2.Vm, _Mapping]] = ...) -> None: ...

class GetVmRequest(_message.Message):
    __slots__ = ("vm_id", "user_id")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    user_id: str
    def __init__(self, vm_id: _Optional[str] = ..., user_id: _Optional[str] = ...) -> None: ...

class GetVmResponse(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: _vm_pb2.Vm
    def __init__(self, vm: _Optional[_Union[_vm_pb2.Vm, _Mapping]] = ...) -> None: ...

class ListVmsRequest(_message.Message):
    __slots__ = ("page", "states")
    PAGE_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    page: _page_pb2.PageRequest
    states: _containers.RepeatedScalarFieldContainer[_vm_pb2.VmState]
    def __init__(self, page: _Optional[_Union[_page_pb2.PageRequest, _Mapping]] = ..., states: _Optional[_Iterable[_Union[_vm_pb2.VmState, str]]] = ...) -> None: ...

class ListVmsResponse(_message.Message):
    __slots__ = ("vms", "next_page_token")
    VMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    vms: _containers.RepeatedCompositeFieldContainer[_vm_pb2.Vm]
    next_page_token: str
    def __init__(self, vms: _Optional[_Iterable[_Union[_vm_pb2.Vm, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class StartVmRequest(_message.Message):
    __slots__ = ("request_id", "vm_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    vm_id: str
    def __init__(self, request_id: _Optional[str] = ..., vm_id: _Optional[str] = ...) -> None: ...

class StartVmResponse(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: _vm_pb2.Vm
    def __init__(self, vm: _Optional[_Union[_vm_pb2.Vm, _Mapping]] = ...) -> None: ...

class StopVmRequest(_message.Message):
    __slots__ = ("request_id", "vm_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    vm_id: str
    def __init__(self, request_id: _Optional[str] = ..., vm_id: _Optional[str] = ...) -> None: ...

class StopVmResponse(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: _vm_pb2.Vm
    def __init__(self, vm: _Optional[_Union[_vm_pb2.Vm, _Mapping]] = ...) -> None: ...

class RecycleVmRequest(_message.Message):
    __slots__ = ("request_id", "vm_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    vm_id: str
    def __init__(self, request_id: _Optional[str] = ..., vm_id: _Optional[str] = ...) -> None: ...

class RecycleVmResponse(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: _vm_pb2.Vm
    def __init__(self, vm: _Optional[_Union[_vm_pb2.Vm, _Mapping]] = ...) -> None: ...

class DeleteVmRequest(_message.Message):
    __slots__ = ("request_id", "vm_id", "force")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    vm_id: str
    force: bool
    def __init__(self, request_id: _Optional[str] = ..., vm_id: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class DeleteVmResponse(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: _vm_pb2.Vm
    def __init__(self, vm: _Optional[_Union[_vm_pb2.Vm, _Mapping]] = ...) -> None: ...

class WatchVmsRequest(_message.Message):
    __slots__ = ("vm_id", "resume_token")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    resume_token: bytes
    def __init__(self, vm_id: _Optional[str] = ..., resume_token: _Optional[bytes] = ...) -> None: ...

class WatchVmsResponse(_message.Message):
    __slots__ = ("vm", "bookmark", "resume_token")
    class Bookmark(_message.Message):
        __slots__ = ("caught_up",)
        CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
        caught_up: bool
        def __init__(self, caught_up: _Optional[bool] = ...) -> None: ...
    VM_FIELD_NUMBER: _ClassVar[int]
    BOOKMARK_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    vm: _vm_pb2.Vm
    bookmark: WatchVmsResponse.Bookmark
    resume_token: bytes
    def __init__(self, vm: _Optional[_Union[_vm_pb2.Vm, _Mapping]] = ..., bookmark: _Optional[_Union[WatchVmsResponse.Bookmark, _Mapping]] = ..., resume_token: _Optional[bytes] = ...) -> None: ...

class CheckVmHealthRequest(_message.Message):
    __slots__ = ("vm_id",)
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    def __init__(self, vm_id: _Optional[str] = ...) -> None: ...

class CheckVmHealthResponse(_message.Message):
    __slots__ = ("status", "layers", "containers")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    status: _health_pb2.HealthStatus
    layers: _containers.RepeatedCompositeFieldContainer[LayerHealth]
    containers: _containers.RepeatedCompositeFieldContainer[_container_pb2.ContainerStatus]
    def __init__(self, status: _Optional[_Union[_health_pb2.HealthStatus, str]] = ..., layers: _Optional[_Iterable[_Union[LayerHealth, _Mapping]]] = ..., containers: _Optional[_Iterable[_Union[_container_pb2.ContainerStatus, _Mapping]]] = ...) -> None: ...

class LayerHealth(_message.Message):
    __slots__ = ("layer", "status", "message", "latency")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    layer: str
    status: _health_pb2.HealthStatus
    message: str
    latency: _duration_pb2.Duration
    def __init__(self, layer: _Optional[str] = ..., status: _Optional[_Union[_health_pb2.HealthStatus, str]] = ..., message: _Optional[str] = ..., latency: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
