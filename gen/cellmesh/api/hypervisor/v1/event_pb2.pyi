import datetime

from cellmesh.api.common.v1 import container_pb2 as _container_pb2
from cellmesh.api.common.v1 import health_pb2 as _health_pb2
from cellmesh.api.hypervisor.v1 import route_pb2 as _route_pb2
from cellmesh.api.hypervisor.v1 import vm_pb2 as _vm_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Event(_message.Message):
    __slots__ = ("sequence", "time", "vm_id", "container_name", "epoch", "generation", "trace_id", "vm_state_changed", "container_state_changed", "container_oom_killed", "container_health_changed", "agent_misbehaved", "anomaly", "node_drain_changed", "route_switched", "route_refused", "container_deleted")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_NAME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    VM_STATE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_STATE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_OOM_KILLED_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_HEALTH_CHANGED_FIELD_NUMBER: _ClassVar[int]
    AGENT_MISBEHAVED_FIELD_NUMBER: _ClassVar[int]
    ANOMALY_FIELD_NUMBER: _ClassVar[int]
    NODE_DRAIN_CHANGED_FIELD_NUMBER: _ClassVar[int]
    ROUTE_SWITCHED_FIELD_NUMBER: _ClassVar[int]
    ROUTE_REFUSED_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_DELETED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    time: _timestamp_pb2.Timestamp
    vm_id: str
    container_name: str
    epoch: int
    generation: int
    trace_id: str
    vm_state_changed: VmStateChanged
    container_state_changed: ContainerStateChanged
    container_oom_killed: ContainerOomKilled
    container_health_changed: ContainerHealthChanged
    agent_misbehaved: AgentMisbehaved
    anomaly: Anomaly
    node_drain_changed: NodeDrainChanged
    route_switched: RouteSwitched
    route_refused: RouteRefused
    container_deleted: ContainerDeleted
    def __init__(self, sequence: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., vm_id: _Optional[str] = ..., container_name: _Optional[str] = ..., epoch: _Optional[int] = ..., generation: _Optional[int] = ..., trace_id: _Optional[str] = ..., vm_state_changed: _Optional[_Union[VmStateChanged, _Mapping]] = ..., container_state_changed: _Optional[_Union[ContainerStateChanged, _Mapping]] = ..., container_oom_killed: _Optional[_Union[ContainerOomKilled, _Mapping]] = ..., container_health_changed: _Optional[_Union[ContainerHealthChanged, _Mapping]] = ..., agent_misbehaved: _Optional[_Union[AgentMisbehaved, _Mapping]] = ..., anomaly: _Optional[_Union[Anomaly, _Mapping]] = ..., node_drain_changed: _Optional[_Union[NodeDrainChanged, _Mapping]] = ..., route_switched: _Optional[_Union[RouteSwitched, _Mapping]] = ..., route_refused: _Optional[_Union[RouteRefused, _Mapping]] = ..., container_deleted: _Optional[_Union[ContainerDeleted, _Mapping]] = ...) -> None: ...

class VmStateChanged(_message.Message):
    __slots__ = ("to", "reason", "message")
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    to: _vm_pb2.VmState
    reason: str
    message: str
    def __init__(self, to: _Optional[_Union[_vm_pb2.VmState, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., **kwargs) -> None: ...

class ContainerStateChanged(_message.Message):
    __slots__ = ("to", "reason", "message", "exit_code")
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    to: _container_pb2.ContainerState
    reason: str
    message: str
    exit_code: int
    def __init__(self, to: _Optional[_Union[_container_pb2.ContainerState, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., exit_code: _Optional[int] = ..., **kwargs) -> None: ...

class ContainerOomKilled(_message.Message):
    __slots__ = ("oom_kills",)
    OOM_KILLS_FIELD_NUMBER: _ClassVar[int]
    oom_kills: int
    def __init__(self, oom_kills: _Optional[int] = ...) -> None: ...

class ContainerHealthChanged(_message.Message):
    __slots__ = ("to",)
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    to: _health_pb2.HealthStatus
    def __init__(self, to: _Optional[_Union[_health_pb2.HealthStatus, str]] = ..., **kwargs) -> None: ...

class AgentMisbehaved(_message.Message):
    __slots__ = ("kind", "message", "count")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    count: int
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class Anomaly(_message.Message):
    __slots__ = ("kind", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class RouteSwitched(_message.Message):
    __slots__ = ("prefix", "to")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    to: _route_pb2.RouteTarget
    def __init__(self, prefix: _Optional[str] = ..., to: _Optional[_Union[_route_pb2.RouteTarget, _Mapping]] = ..., **kwargs) -> None: ...

class RouteRefused(_message.Message):
    __slots__ = ("prefix", "target", "message")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    target: _route_pb2.RouteTarget
    message: str
    def __init__(self, prefix: _Optional[str] = ..., target: _Optional[_Union[_route_pb2.RouteTarget, _Mapping]] = ..., message: _Optional[str] = ...) -> None: ...

class ContainerDeleted(_message.Message):
    __slots__ = ("persistent_paths",)
    PERSISTENT_PATHS_FIELD_NUMBER: _ClassVar[int]
    persistent_paths: bool
    def __init__(self, persistent_paths: _Optional[bool] = ...) -> None: ...

class NodeDrainChanged(_message.Message):
    __slots__ = ("draining",)
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    draining: bool
    def __init__(self, draining: _Optional[bool] = ...) -> None: ...
