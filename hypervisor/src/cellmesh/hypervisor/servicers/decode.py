"""From the contract's messages, already validated, to the domain's values, every default filled in."""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.message import Message

from cellmesh.api.common.v1 import container_pb2
from cellmesh.api.hypervisor.v1 import route_service_pb2, vm_pb2
from cellmesh.hypervisor.domain.container import ContainerSpec
from cellmesh.hypervisor.domain.route import RouteTarget
from cellmesh.hypervisor.domain.vm import ColdStart, RestartMode, RestartPolicy, VmSpec
from cellmesh.hypervisor.lifecycle.switches import Wish
from cellmesh.mesh.errors import FieldViolation, InvalidRequest
from cellmesh.mesh.limits import GUEST_MESSAGE_BYTES

_MIB = 1 << 20
# A message to a guest, less room for what stands around a spec or an opening frame.
_MOST_FOR_GUEST = GUEST_MESSAGE_BYTES - 4096
_VCPUS = 1
_VM_MEMORY = 512 * _MIB
_DATA_DISK = 2048 * _MIB
_CONTAINER_MEMORY = 128 * _MIB
_CPU_MILLIS = 1000
_PIDS = 256
_IO_WEIGHT = 100
_MAX_RESTARTS = 5
_INITIAL_BACKOFF = timedelta(seconds=1)
_MAX_BACKOFF = timedelta(seconds=30)
_PROBE_INTERVAL = timedelta(seconds=5)
_PROBE_TIMEOUT = timedelta(seconds=2)
_FAILURE_THRESHOLD = 3
_STOP_GRACE = timedelta(seconds=5)
_HTTP_PORT = 8080
_MODES = {
    container_pb2.RESTART_MODE_UNSPECIFIED: RestartMode.ON_FAILURE,
    container_pb2.RESTART_MODE_NEVER: RestartMode.NEVER,
    container_pb2.RESTART_MODE_ON_FAILURE: RestartMode.ON_FAILURE,
    container_pb2.RESTART_MODE_ALWAYS: RestartMode.ALWAYS,
}

_COLD_STARTS = {
    vm_pb2.COLD_START_UNSPECIFIED: ColdStart.ON_REQUEST,
    vm_pb2.COLD_START_ON_REQUEST: ColdStart.ON_REQUEST,
    vm_pb2.COLD_START_NEVER: ColdStart.NEVER,
}
_MODE_NUMBERS = {mode: number for number, mode in _MODES.items() if number}


def vm_spec(message: vm_pb2.VmSpec) -> VmSpec:
    """Return what a VM is to be made of; an empty image stays empty."""
    return VmSpec(
        guest_image=message.guest_image,
        vcpus=message.vcpus or _VCPUS,
        memory_bytes=message.memory_bytes or _VM_MEMORY,
        data_disk_bytes=message.data_disk_bytes or _DATA_DISK,
        restart_policy=_restart_policy(message.restart_policy),
        cold_start=_COLD_STARTS[message.cold_start],
    )


def _restart_policy(message: container_pb2.RestartPolicy) -> RestartPolicy:
    initial = message.initial_backoff.ToTimedelta() if message.HasField("initial_backoff") else _INITIAL_BACKOFF
    longest = message.max_backoff.ToTimedelta() if message.HasField("max_backoff") else _MAX_BACKOFF
    return RestartPolicy(
        mode=_MODES[message.mode],
        max_restarts=message.max_restarts or _MAX_RESTARTS,
        initial_backoff=initial,
        max_backoff=max(longest, initial),
    )


def container_spec(message: container_pb2.ContainerSpec) -> ContainerSpec:
    """Return what a container is to be made of."""
    filled = container_pb2.ContainerSpec()
    filled.CopyFrom(message)
    resources = filled.resources
    resources.memory_bytes = resources.memory_bytes or _CONTAINER_MEMORY
    resources.cpu_millis = resources.cpu_millis or _CPU_MILLIS
    resources.pids = resources.pids or _PIDS
    resources.io_weight = resources.io_weight or _IO_WEIGHT
    policy = _restart_policy(filled.restart_policy)
    filled.restart_policy.mode = _MODE_NUMBERS[policy.mode]
    filled.restart_policy.max_restarts = policy.max_restarts
    filled.restart_policy.initial_backoff.FromTimedelta(policy.initial_backoff)
    filled.restart_policy.max_backoff.FromTimedelta(policy.max_backoff)
    if filled.HasField("probe"):
        _fill_probe(filled.probe)
    filled.http_port = filled.http_port or _HTTP_PORT
    if not filled.HasField("stop_grace"):
        filled.stop_grace.FromTimedelta(_STOP_GRACE)
    require_fits_guest(filled, "spec")
    return ContainerSpec(
        image=filled.image,
        stop_grace=filled.stop_grace.ToTimedelta(),
        document=filled.SerializeToString(deterministic=True),
    )


def wish(message: route_service_pb2.SwitchRouteRequest) -> Wish:
    """Return where a route is to lead."""
    return Wish(
        vm_id=message.vm_id,
        prefix=message.prefix,
        target=RouteTarget(container=message.target.container_name, generation=message.target.generation),
        expected_revision=message.expected_revision,
        drain_timeout=message.drain_timeout.ToTimedelta() if message.HasField("drain_timeout") else None,
    )


def require_fits_guest(message: Message, field: str) -> None:
    """Raise InvalidRequest for what no guest can be told, though none of its parts is too long by itself."""
    if (size := message.ByteSize()) > _MOST_FOR_GUEST:
        fault = f"is {size} bytes in all, and a guest takes {_MOST_FOR_GUEST}"
        raise InvalidRequest(
            f"{field} {fault}; put what is long in a file.",
            field_violations=[FieldViolation(field=field, description=fault)],
        )


def _fill_probe(probe: container_pb2.HealthProbe) -> None:
    if probe.WhichOneof("probe") == "http":
        probe.http.path = probe.http.path or "/"
    if not probe.HasField("interval"):
        probe.interval.FromTimedelta(_PROBE_INTERVAL)
    if not probe.HasField("timeout"):
        probe.timeout.FromTimedelta(_PROBE_TIMEOUT)
    probe.failure_threshold = probe.failure_threshold or _FAILURE_THRESHOLD
