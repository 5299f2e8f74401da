"""When a failed call is sent again: only where the contract allows it, jittered, within deadline and budget."""

from __future__ import annotations

import random
from collections.abc import Callable

from google.protobuf.message import Message

from cellmesh.mesh.breaker import BreakerOpen
from cellmesh.mesh.errors import Code, MeshError
from cellmesh.mesh.policy import MethodPolicy, Retry

_FIRST_DELAY = 0.05
_MAX_DELAY = 2.0
# A fresh process may retry this often before it has made any calls, and a quiet one may save up so much.
_FIRST_TOKENS = 3.0
_MAX_TOKENS = 10.0


class RetryBudget:
    """Retries one downstream may still get: each call earns its policy's percent of one, each retry spends one."""

    def __init__(self) -> None:
        self._tokens = _FIRST_TOKENS

    def earn(self, percent: int) -> None:
        """Note a call."""
        self._tokens = min(self._tokens + percent / 100, _MAX_TOKENS)

    def spend(self) -> bool:
        """Take a retry; return False if there is none left."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def may_retry(policy: MethodPolicy, request: object) -> bool:
    """Tell whether the contract lets a caller send this request again."""
    if policy.retry is Retry.SAFE:
        return True
    return (
        policy.retry is Retry.REQUEST_ID and isinstance(request, Message) and bool(getattr(request, "request_id", ""))
    )


def delay(
    error: MeshError,
    *,
    attempt: int,
    policy: MethodPolicy,
    left: float,
    budget: RetryBudget,
    uniform: Callable[[float, float], float] = random.uniform,
) -> float | None:
    """Return the seconds to wait before the try after number `attempt`, or None if there is to be none.

    Full jitter, so that callers that failed together do not come back together. A RetryInfo is the least wait.
    """
    if error.code is not Code.UNAVAILABLE or isinstance(error, BreakerOpen) or attempt >= policy.max_attempts:
        return None
    wait = uniform(0.0, min(_FIRST_DELAY * 2.0**attempt, _MAX_DELAY))
    if error.retry_after is not None:
        wait += error.retry_after.total_seconds()
    # A try that has no time left to answer is only load.
    if wait >= left or not budget.spend():
        return None
    return wait
