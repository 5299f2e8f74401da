"""The words of this package: a container's specification and its status, as plain values.

The numbers of the enumerations are those of `cellmesh.api.common.v1`.
"""

from dataclasses import dataclass
from enum import IntEnum

DEFAULT_MEMORY = 128 << 20
DEFAULT_CPU_MILLIS = 1000
DEFAULT_PIDS = 256
DEFAULT_IO_WEIGHT = 100
DEFAULT_HTTP_PORT = 8080


class State(IntEnum):
    """Where a container is in its life."""

    PENDING = 1
    STARTING = 2
    RUNNING = 3
    STOPPING = 4
    STOPPED = 5
    BACKOFF = 6
    FAILED = 7


class Health(IntEnum):
    """What its probe said last."""

    UNKNOWN = 1
    SERVING = 2
    NOT_SERVING = 3


class RestartMode(IntEnum):
    """What to do when the process ends by itself."""

    NEVER = 1
    ON_FAILURE = 2
    ALWAYS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How often, and how soon, a container that ended is started again; times in seconds."""

    mode: RestartMode = RestartMode.ON_FAILURE
    max_restarts: int = 5
    initial_backoff: float = 1.0
    max_backoff: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The cgroup limits: bytes, thousandths of a core, processes, and a share of disk time."""

    memory_bytes: int = DEFAULT_MEMORY
    cpu_millis: int = DEFAULT_CPU_MILLIS
    pids: int = DEFAULT_PIDS
    io_weight: int = DEFAULT_IO_WEIGHT


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpProbe:
    """Asks over HTTP; 200 to 399 is well."""

    port: int
    path: str = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpProbe:
    """Connects; an accepted connection is well."""

    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecProbe:
    """Runs a command; exit code 0 is well."""

    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthProbe:
    """A question, how often it is asked, and how long an answer may take; times in seconds."""

    question: HttpProbe | TcpProbe | ExecProbe
    interval: float = 5.0
    timeout: float = 2.0
    failure_threshold: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """What a container is made of; `stop_grace` in seconds."""

    image: str
    argv: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    working_dir: str = ""
    resources: Resources = Resources()
    restart_policy: RestartPolicy = RestartPolicy()
    probe: HealthProbe | None = None
    persistent_paths: tuple[str, ...] = ()
    stop_grace: float = 5.0
    http_port: int = DEFAULT_HTTP_PORT

    @property
    def image_serial(self) -> str:
        """The serial of the disk that carries the image."""
        return self.image.removeprefix("sha256:")[:20]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStatus:
    """A container as it is now; `start_time` in seconds since 1970 by the guest's clock."""

    name: str
    generation: int
    state: State = State.PENDING
    health: Health = Health.UNKNOWN
    exit_code: int = 0
    restart_count: int = 0
    oom_kills: int = 0
    reason: str = ""
    message: str = ""
    start_time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStats:
    """What a container uses: bytes, seconds and counts, read from its cgroup."""

    memory_bytes: int
    memory_peak_bytes: int
    memory_limit_bytes: int
    cpu_seconds: float
    throttled_seconds: float
    pids: int
    pids_refused: int
    io_read_bytes: int
    io_write_bytes: int
    oom_kills: int
