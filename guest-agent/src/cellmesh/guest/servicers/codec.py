"""Between the contract's messages and the domain's values.

The host validates what it sends by the contract's own rules; checked again here is only what the agent's safety needs.
"""

import re
from typing import cast

from google.protobuf import duration_pb2, timestamp_pb2

from cellmesh.api.common.v1 import container_pb2, health_pb2
from cellmesh.guest.containers.model import (
    DEFAULT_CPU_MILLIS,
    DEFAULT_HTTP_PORT,
    DEFAULT_IO_WEIGHT,
    DEFAULT_MEMORY,
    DEFAULT_PIDS,
    ContainerSpec,
    ContainerStats,
    ContainerStatus,
    ExecProbe,
    HealthProbe,
    HttpProbe,
    Resources,
    RestartMode,
    RestartPolicy,
    TcpProbe,
)
from cellmesh.guest.errors import InvalidRequest

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_IMAGE = re.compile(r"sha256:[0-9a-f]{64}")
_SERIAL = re.compile(r"[0-9a-f]{20}")
_PERSISTENT_PATH = re.compile(r"(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)+")
_PATH_LIMIT = 256
_MESSAGE_LIMIT = 1024
_INGRESS_PORTS = range(1 << 16, (1 << 32) - 1)  # Below are the agent's own; the last number stands for any port.
_LAST_TCP_PORT = 65535
_LOWEST_MEMORY = 4 << 20


def decode_name(name: str) -> str:
    """Return a container's name; raises InvalidRequest for one that could be anything but a name."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest("container_name must match ^[a-z][a-z0-9-]{0,31}$")
    return name


def decode_serial(serial: str) -> str:
    """Return the serial of an image's disk; raises InvalidRequest for one that could be anything but a serial."""
    if not _SERIAL.fullmatch(serial):
        raise InvalidRequest("serial must be 20 hex digits")
    return serial


def decode_ingress_port(port: int) -> int:
    """Return a port of the guest's vsock that leads to a container; raises InvalidRequest for any other."""
    if port not in _INGRESS_PORTS:
        raise InvalidRequest(f"ingress_port must be from {_INGRESS_PORTS.start} to {_INGRESS_PORTS.stop - 1}")
    return port


def decode_spec(message: container_pb2.ContainerSpec) -> ContainerSpec:
    """Return a specification with the contract's defaults filled in; raises InvalidRequest."""
    if not _IMAGE.fullmatch(message.image):
        raise InvalidRequest("image must be sha256: and 64 hex digits")
    paths = tuple(entry.path for entry in message.persistent_paths)
    if any(len(path) > _PATH_LIMIT or not _PERSISTENT_PATH.fullmatch(path) for path in paths):
        raise InvalidRequest("a persistent path must be absolute and without '.', '..' and empty parts")
    if message.http_port > _LAST_TCP_PORT:
        raise InvalidRequest(f"http_port must be at most {_LAST_TCP_PORT}")
    return ContainerSpec(
        image=message.image,
        argv=tuple(message.argv),
        environment=tuple((entry.name, entry.value) for entry in message.environment),
        working_dir=message.working_dir,
        resources=_resources(message.resources),
        restart_policy=_restart_policy(message.restart_policy),
        probe=_probe(message.probe) if message.HasField("probe") else None,
        persistent_paths=paths,
        stop_grace=seconds(message.stop_grace) if message.HasField("stop_grace") else 5.0,
        http_port=message.http_port or DEFAULT_HTTP_PORT,
    )


def _resources(message: container_pb2.ContainerResources) -> Resources:
    return Resources(
        memory_bytes=max(message.memory_bytes or DEFAULT_MEMORY, _LOWEST_MEMORY),
        cpu_millis=message.cpu_millis or DEFAULT_CPU_MILLIS,
        pids=message.pids or DEFAULT_PIDS,
        io_weight=message.io_weight or DEFAULT_IO_WEIGHT,
    )


def _restart_policy(message: container_pb2.RestartPolicy) -> RestartPolicy:
    modes = {
        container_pb2.RESTART_MODE_NEVER: RestartMode.NEVER,
        container_pb2.RESTART_MODE_ALWAYS: RestartMode.ALWAYS,
    }
    return RestartPolicy(
        mode=modes.get(message.mode, RestartMode.ON_FAILURE),
        max_restarts=message.max_restarts or 5,
        initial_backoff=seconds(message.initial_backoff) or 1.0,
        max_backoff=seconds(message.max_backoff) or 30.0,
    )


def _probe(message: container_pb2.HealthProbe) -> HealthProbe:
    question: HttpProbe | TcpProbe | ExecProbe
    match message.WhichOneof("probe"):
        case "http":
            question = HttpProbe(port=message.http.port, path=message.http.path or "/")
        case "tcp":
            question = TcpProbe(port=message.tcp.port)
        case "exec":
            question = ExecProbe(argv=tuple(message.exec.argv))
        case _:
            raise InvalidRequest("a probe must say what it asks: http, tcp or exec")
    return HealthProbe(
        question=question,
        interval=seconds(message.interval) or 5.0,
        timeout=seconds(message.timeout) or 2.0,
        failure_threshold=message.failure_threshold or 3,
    )


def encode_status(status: ContainerStatus) -> container_pb2.ContainerStatus:
    """Return a status as the contract has it."""
    return container_pb2.ContainerStatus(
        container_name=status.name,
        generation=status.generation,
        state=cast("container_pb2.ContainerState", int(status.state)),
        health=cast("health_pb2.HealthStatus", int(status.health)),
        exit_code=status.exit_code,
        restart_count=status.restart_count,
        oom_kills=status.oom_kills,
        reason=status.reason,
        message=status.message[:_MESSAGE_LIMIT],
        start_time=None if status.start_time is None else timestamp(status.start_time),
    )


def encode_stats(name: str, generation: int, stats: ContainerStats) -> container_pb2.ContainerStats:
    """Return the numbers of one container as the contract has them."""
    return container_pb2.ContainerStats(
        container_name=name,
        generation=generation,
        memory_bytes=stats.memory_bytes,
        memory_peak_bytes=stats.memory_peak_bytes,
        memory_limit_bytes=stats.memory_limit_bytes,
        cpu_time=duration(stats.cpu_seconds),
        cpu_throttled_time=duration(stats.throttled_seconds),
        pids=stats.pids,
        pids_refused=stats.pids_refused,
        io_read_bytes=stats.io_read_bytes,
        io_write_bytes=stats.io_write_bytes,
        oom_kills=stats.oom_kills,
    )


def seconds(message: duration_pb2.Duration) -> float:
    """Return a duration in seconds."""
    return message.seconds + message.nanos / 1e9


def duration(value: float) -> duration_pb2.Duration:
    """Return seconds as a duration."""
    return duration_pb2.Duration(**_parts(value))


def timestamp(value: float) -> timestamp_pb2.Timestamp:
    """Return seconds since 1970 as a timestamp."""
    whole, nanos = divmod(round(value * 1e9), 10**9)
    return timestamp_pb2.Timestamp(seconds=whole, nanos=nanos)


def _parts(value: float) -> dict[str, int]:
    # Both parts of a duration have the same sign.
    sign = -1 if value < 0 else 1
    whole, nanos = divmod(round(abs(value) * 1e9), 10**9)
    return {"seconds": sign * whole, "nanos": sign * nanos}
