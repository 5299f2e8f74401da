"""From the domain's values to the contract's messages."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from cellmesh.api.common.v1 import container_pb2 as common_container_pb2
from cellmesh.api.common.v1 import health_pb2
from cellmesh.api.hypervisor.v1 import container_pb2, event_pb2, route_pb2, vm_pb2
from cellmesh.hypervisor.domain import event
from cellmesh.hypervisor.domain.container import Container, ContainerState, ContainerStatus, Health
from cellmesh.hypervisor.domain.route import CurrentRoute, RouteState, RouteTarget
from cellmesh.hypervisor.domain.vm import ColdStart, DesiredState, RestartMode, RestartPolicy, Vm, VmState


def _numbers(names: type[Enum], numbers: Any, prefix: str) -> dict[Any, Any]:
    """Return the contract's number of each name."""
    return {member: numbers.Value(f"{prefix}_{member.name}") for member in names}


VM_STATES: dict[VmState, vm_pb2.VmState] = _numbers(VmState, vm_pb2.VmState, "VM_STATE")
_DESIRED_STATES: dict[DesiredState, vm_pb2.DesiredState] = _numbers(DesiredState, vm_pb2.DesiredState, "DESIRED_STATE")
_CONTAINER_STATES: dict[ContainerState, common_container_pb2.ContainerState] = _numbers(
    ContainerState, common_container_pb2.ContainerState, "CONTAINER_STATE"
)
_RESTART_MODES: dict[RestartMode, common_container_pb2.RestartMode] = _numbers(
    RestartMode, common_container_pb2.RestartMode, "RESTART_MODE"
)
_COLD_STARTS: dict[ColdStart, vm_pb2.ColdStart] = _numbers(ColdStart, vm_pb2.ColdStart, "COLD_START")
_ROUTE_STATES: dict[RouteState, route_pb2.RouteState] = _numbers(RouteState, route_pb2.RouteState, "ROUTE_STATE")
HEALTH: dict[Health, health_pb2.HealthStatus] = _numbers(Health, health_pb2.HealthStatus, "HEALTH_STATUS")


def vm(value: Vm) -> vm_pb2.Vm:
    """Return a VM."""
    spec = value.spec
    return vm_pb2.Vm(
        vm_id=value.vm_id,
        user_id=value.user_id,
        spec=vm_pb2.VmSpec(
            guest_image=spec.guest_image,
            vcpus=spec.vcpus,
            memory_bytes=spec.memory_bytes,
            data_disk_bytes=spec.data_disk_bytes,
            restart_policy=_restart_policy(spec.restart_policy),
            cold_start=_COLD_STARTS[spec.cold_start],
        ),
        desired_state=_DESIRED_STATES[value.desired],
        state=VM_STATES[value.state],
        epoch=value.epoch,
        reason=value.reason.value,
        message=value.message,
        revision=value.revision,
        restart_count=value.restart_count,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
        running_time=None if value.running_time is None else timestamp(value.running_time),
        vmm_pid=value.vmm_pid,
    )


def _restart_policy(policy: RestartPolicy) -> common_container_pb2.RestartPolicy:
    return common_container_pb2.RestartPolicy(
        mode=_RESTART_MODES[policy.mode],
        max_restarts=policy.max_restarts,
        initial_backoff=policy.initial_backoff,
        max_backoff=policy.max_backoff,
    )


def container(value: Container) -> container_pb2.Container:
    """Return a container."""
    return container_pb2.Container(
        vm_id=value.vm_id,
        container_name=value.name,
        spec=common_container_pb2.ContainerSpec.FromString(value.spec.document),
        desired_state=_CONTAINER_STATES[ContainerState.RUNNING if value.wanted else ContainerState.STOPPED],
        generation=value.generation,
        epoch=value.epoch,
        status=container_status(value.name, value.generation, value.status),
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
    )


def container_status(name: str, generation: int, status: ContainerStatus) -> common_container_pb2.ContainerStatus:
    """Return how a container is."""
    return common_container_pb2.ContainerStatus(
        container_name=name,
        generation=generation,
        state=_CONTAINER_STATES[status.state],
        health=HEALTH[status.health],
        exit_code=status.exit_code,
        restart_count=status.restart_count,
        oom_kills=status.oom_kills,
        reason=status.reason,
        message=status.message,
        start_time=None if status.start_time is None else timestamp(status.start_time),
    )


def route(value: CurrentRoute) -> route_pb2.Route:
    """Return a route and what requests for it get."""
    stored, status = value.route, value.status
    return route_pb2.Route(
        vm_id=stored.vm_id,
        user_id=value.user_id,
        prefix=stored.prefix,
        target=_target(stored.target),
        state=_ROUTE_STATES[status.state],
        epoch=status.epoch,
        generation=status.generation,
        reason=status.reason,
        message=status.message,
        revision=stored.revision,
        update_time=timestamp(stored.update_time),
    )


def _target(value: RouteTarget) -> route_pb2.RouteTarget:
    return route_pb2.RouteTarget(container_name=value.container, generation=value.generation)


def entry(value: event.Entry) -> event_pb2.Event:
    """Return an event of the log."""
    message = event_pb2.Event(
        sequence=value.sequence,
        time=timestamp(value.time),
        vm_id=value.subject.vm_id,
        container_name=value.subject.container_name,
        epoch=value.subject.epoch,
        generation=value.subject.generation,
        trace_id=value.trace_id,
    )
    _put_payload(message, value.payload)
    return message


def _put_payload(message: event_pb2.Event, payload: event.Payload | None) -> None:
    match payload:
        case event.VmStateChanged(origin=origin, target=target, reason=reason, message=text):
            changed = message.vm_state_changed
            # `from` is a keyword of Python, so it cannot be set by name.
            setattr(changed, "from", 0 if origin is None else VM_STATES[origin])
            changed.to, changed.reason, changed.message = VM_STATES[target], reason, text
        case event.ContainerStateChanged() as it:
            moved = message.container_state_changed
            setattr(moved, "from", 0 if it.origin is None else _CONTAINER_STATES[it.origin])
            moved.to, moved.reason, moved.message = _CONTAINER_STATES[it.target], it.reason, it.message
            moved.exit_code = it.exit_code
        case event.ContainerHealthChanged(origin=was, target=now):
            setattr(message.container_health_changed, "from", HEALTH[was])
            message.container_health_changed.to = HEALTH[now]
        case event.ContainerOomKilled(oom_kills=kills):
            message.container_oom_killed.oom_kills = kills
        case event.ContainerDeleted(persistent_paths=persistent):
            message.container_deleted.MergeFrom(event_pb2.ContainerDeleted(persistent_paths=persistent))
            message.container_deleted.SetInParent()
        case event.AgentMisbehaved(kind=kind, message=text, count=count):
            message.agent_misbehaved.MergeFrom(event_pb2.AgentMisbehaved(kind=kind, message=text, count=count))
        case event.Anomaly(kind=kind, message=text):
            message.anomaly.MergeFrom(event_pb2.Anomaly(kind=kind, message=text))
        case event.RouteSwitched(prefix=prefix, origin=left, target=led):
            message.route_switched.prefix = prefix
            getattr(message.route_switched, "from").CopyFrom(_target(left))
            message.route_switched.to.CopyFrom(_target(led))
        case event.RouteRefused(prefix=prefix, target=led, message=text):
            message.route_refused.MergeFrom(event_pb2.RouteRefused(prefix=prefix, target=_target(led), message=text))
        case event.NodeDrainChanged(draining=draining):
            message.node_drain_changed.MergeFrom(event_pb2.NodeDrainChanged(draining=draining))


def timestamp(time: datetime) -> Timestamp:
    """Return a moment."""
    message = Timestamp()
    message.FromDatetime(time)
    return message
