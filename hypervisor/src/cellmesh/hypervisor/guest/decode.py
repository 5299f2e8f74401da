"""What an agent says, already validated against the contract, as claims of the domain: escaped and bounded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from cellmesh.api.common.v1 import container_pb2, health_pb2
from cellmesh.api.guest.v1 import agent_service_pb2
from cellmesh.hypervisor.domain.container import Claim, ContainerState, ContainerStatus, Health
from cellmesh.hypervisor.lifecycle.agents import Report
from cellmesh.mesh.errors import InvalidAnswer, InvalidRequest, MeshError, sanitize

_MAX_MESSAGE = 1024
_STATES = {container_pb2.ContainerState.Value(f"CONTAINER_STATE_{state.name}"): state for state in ContainerState}
_HEALTH = {health_pb2.HealthStatus.Value(f"HEALTH_STATUS_{health.name}"): health for health in Health} | {
    health_pb2.HEALTH_STATUS_UNSPECIFIED: Health.UNKNOWN
}


def report(message: agent_service_pb2.ReportRequest) -> Report:
    """Return a report; InvalidRequest if a container has no state or stands in it twice."""
    claims = tuple(_claim(status, InvalidRequest) for status in message.containers)
    if len({claim.name for claim in claims}) != len(claims):
        raise InvalidRequest("A report names a container twice.")
    return Report(vm_id=message.vm_id, epoch=message.epoch, sequence=message.sequence, claims=claims)


def answer(message: container_pb2.ContainerStatus, *, name: str, generation: int | None) -> ContainerStatus:
    """Return the status of the container that was asked for; InvalidAnswer if it is of another, or has no state."""
    claim = _claim(message, InvalidAnswer)
    if claim.name != name or (generation is not None and claim.generation != generation):
        raise InvalidAnswer(f"The agent was asked for container {name} and answered for another.")
    return claim.status


def listed(messages: Iterable[container_pb2.ContainerStatus]) -> Sequence[Claim]:
    """Return the statuses of all containers; InvalidAnswer if one has no state."""
    return [_claim(message, InvalidAnswer) for message in messages]


def _claim(message: container_pb2.ContainerStatus, error: type[MeshError]) -> Claim:
    state = _STATES.get(message.state)
    if state is None:
        raise error(f"The status of container {message.container_name} has no state.")
    status = ContainerStatus(
        state=state,
        health=_HEALTH[message.health],
        exit_code=message.exit_code,
        restart_count=message.restart_count,
        oom_kills=message.oom_kills,
        reason=message.reason,
        message=sanitize(message.message, _MAX_MESSAGE),
        start_time=_moment(message.start_time) if message.HasField("start_time") else None,
    )
    return Claim(name=message.container_name, generation=message.generation, status=status)


def _moment(message: Timestamp) -> datetime | None:
    """Return a moment by the guest's clock, or None where it names none."""
    try:
        moment = message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return moment if moment.year >= 1970 else None
