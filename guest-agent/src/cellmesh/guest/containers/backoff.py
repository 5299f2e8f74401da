"""When a container that ended is started again."""

from collections.abc import Callable
from dataclasses import dataclass

from cellmesh.guest.containers.model import RestartMode, RestartPolicy

_HEALTHY_RUN = 60.0
_JITTER = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run ended: the exit code and how long it ran, seconds."""

    exit_code: int
    ran: float


class Restarts:
    """Counts the tries in a row; a run of a minute starts the count anew."""

    def __init__(self, policy: RestartPolicy, random: Callable[[], float]) -> None:
        self._policy = policy
        self._random = random
        self._row = 0

    def wanted(self, ended: Ended) -> bool:
        """Say whether the policy wants another start after such an end."""
        if self._policy.mode is RestartMode.NEVER:
            return False
        return self._policy.mode is RestartMode.ALWAYS or ended.exit_code != 0

    def next_delay(self, ended: Ended) -> float | None:
        """Return the seconds until the next try, or None when there were too many in a row."""
        if ended.ran >= _HEALTHY_RUN:
            self._row = 0
        if self._row >= self._policy.max_restarts:
            return None
        delay = min(self._policy.initial_backoff * 2.0**self._row, self._policy.max_backoff)
        self._row += 1
        # Containers that died together need not come back together.
        return delay * (1 - _JITTER + 2 * _JITTER * self._random())
