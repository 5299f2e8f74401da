"""Containers that are only a state: they start at once, end when a test says so, and come back by their policy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from cellmesh.api.common.v1 import container_pb2, exec_pb2, health_pb2, log_pb2
from simulator.errors import Refusal

_DEFAULT_RESTARTS = 5
_DEFAULT_BACKOFF_SECONDS = 1.0
_MOST_CONTAINERS = 16


@dataclass(slots=True, kw_only=True)
class SimulatedContainer:
    """One container; `changed` is called after every change of its state."""

    name: str
    generation: int
    spec: container_pb2.ContainerSpec
    ingress_port: int
    changed: Callable[[], None]
    state: container_pb2.ContainerState = container_pb2.CONTAINER_STATE_RUNNING
    health: health_pb2.HealthStatus = health_pb2.HEALTH_STATUS_SERVING
    exit_code: int = 0
    restarts: int = 0
    reason: str = ""
    started: float = field(default_factory=time.time)
    log: bytearray = field(default_factory=bytearray)
    _restart: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self.state == container_pb2.CONTAINER_STATE_RUNNING

    def status(self) -> container_pb2.ContainerStatus:
        """Return it as the agent reports it."""
        status = container_pb2.ContainerStatus(
            container_name=self.name,
            generation=self.generation,
            state=self.state,
            health=self.health,
            exit_code=self.exit_code,
            restart_count=self.restarts,
            reason=self.reason,
        )
        status.start_time.FromNanoseconds(int(self.started * 1e9))
        return status

    def chunk(self, offset: int, size: int) -> log_pb2.LogChunk:
        """Return a piece of its output."""
        return log_pb2.LogChunk(
            offset=offset,
            stream=exec_pb2.OUTPUT_STREAM_STDOUT,
            time=self.status().start_time,
            data=bytes(self.log[offset : offset + size]),
        )

    def end(self, exit_code: int, *, reason: str = "EXITED") -> None:
        """Let its process end by itself; its policy decides what follows."""
        self.exit_code, self.reason = exit_code, reason
        self.health = health_pb2.HEALTH_STATUS_UNKNOWN
        policy = self.spec.restart_policy
        never = policy.mode == container_pb2.RESTART_MODE_NEVER
        if never or (exit_code == 0 and policy.mode != container_pb2.RESTART_MODE_ALWAYS):
            self.state = container_pb2.CONTAINER_STATE_STOPPED
        elif self.restarts >= (policy.max_restarts or _DEFAULT_RESTARTS):
            self.state = container_pb2.CONTAINER_STATE_FAILED
        else:
            self.state = container_pb2.CONTAINER_STATE_BACKOFF
            wait = policy.initial_backoff.ToTimedelta().total_seconds() or _DEFAULT_BACKOFF_SECONDS
            self._restart = asyncio.get_running_loop().call_later(wait * 2**self.restarts, self._start_again)
        self.changed()

    def stop(self) -> None:
        """Stop it by request."""
        self.cancel_restart()
        self.state = container_pb2.CONTAINER_STATE_STOPPED
        self.health = health_pb2.HEALTH_STATUS_UNKNOWN
        self.exit_code, self.reason = 143, "STOP_REQUESTED"
        self.changed()

    @property
    def over(self) -> bool:
        """Whether it has ended and is not started again."""
        return self.state in {container_pb2.CONTAINER_STATE_STOPPED, container_pb2.CONTAINER_STATE_FAILED}

    def cancel_restart(self) -> None:
        """Forget a restart that is due."""
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None

    def _start_again(self) -> None:
        self._restart = None
        self.restarts += 1
        self.state, self.health = container_pb2.CONTAINER_STATE_RUNNING, health_pb2.HEALTH_STATUS_SERVING
        self.reason, self.started = "", time.time()
        self.changed()


class SimulatedContainers:
    """All containers of one boot, by name."""

    def __init__(self, *, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._by_name: dict[str, SimulatedContainer] = {}

    def __getitem__(self, name: str) -> SimulatedContainer:
        if name not in self._by_name:
            raise Refusal(grpc.StatusCode.NOT_FOUND, "CONTAINER_NOT_FOUND", f"no container is called {name}")
        return self._by_name[name]

    def statuses(self) -> list[container_pb2.ContainerStatus]:
        """Return all, by name."""
        return [self._by_name[name].status() for name in sorted(self._by_name)]

    def serving(self, port: int) -> SimulatedContainer | None:
        """Return the container whose process is behind a port, or None."""
        behind = (each for each in self._by_name.values() if each.ingress_port == port and each.running)
        return next(behind, None)

    def start(
        self, name: str, generation: int, spec: container_pb2.ContainerSpec, *, ingress_port: int
    ) -> SimulatedContainer:
        """Start a generation; raises Refusal for an older one or one too many."""
        known = self._by_name.get(name)
        if known is not None and known.generation == generation:
            return known
        if known is not None and known.generation > generation:
            message = f"generation {known.generation} of {name} was started"
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "OLD_GENERATION", message)
        if known is None and len(self._by_name) >= _MOST_CONTAINERS:
            message = f"there are {_MOST_CONTAINERS} containers"
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CONTAINERS", message)
        if known is not None:
            known.cancel_restart()
        self._by_name[name] = SimulatedContainer(
            name=name, generation=generation, spec=spec, ingress_port=ingress_port, changed=self._changed
        )
        self._changed()
        return self._by_name[name]

    def remove(self, name: str) -> None:
        """Forget a container; raises Refusal for one that is not over."""
        container = self._by_name.get(name)
        if container is not None and not container.over:
            message = f"container {name} is not stopped"
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "CONTAINER_RUNNING", message)
        self._by_name.pop(name, None)
        self._changed()

    def require_unused(self, serial: str) -> None:
        """Raise Refusal if a container is made of the image with this serial and is not over."""
        for container in self._by_name.values():
            if container.spec.image.removeprefix("sha256:").startswith(serial) and not container.over:
                message = f"container {container.name} is made of image {serial}"
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "IMAGE_IN_USE", message)

    def close(self) -> None:
        """Forget restarts that are due."""
        for container in self._by_name.values():
            container.cancel_restart()
