"""What is remembered of a VM's guest between two messages; all of it bounded, none of it believed after a restart."""

from __future__ import annotations

import time
from collections.abc import Callable

from cellmesh.hypervisor.domain.container import Claim
from cellmesh.hypervisor.domain.event import AgentMisbehaved

_REPORTS_PER_SECOND = 20.0
_REPORTS_AT_ONCE = 100.0
_SECONDS_BETWEEN_EVENTS = 10.0


class Session:
    """One boot of one VM's guest, from the commit of its epoch to its end."""

    __slots__ = (
        "_clock",
        "_filled",
        "_ignored",
        "_tokens",
        "claims",
        "epoch",
        "heard",
        "rebooted",
        "sequence",
        "vm_id",
    )

    def __init__(self, vm_id: str, epoch: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.vm_id = vm_id
        self.epoch = epoch
        # When the guest was last heard, by the host's monotonic clock.
        self.heard = clock()
        self.rebooted = False
        self.sequence: int | None = None
        # Claims that were dealt with, so that a heartbeat costs no transaction.
        self.claims: dict[str, Claim] = {}
        self._clock = clock
        self._tokens = _REPORTS_AT_ONCE
        self._filled = self.heard
        self._ignored: dict[str, tuple[int, float]] = {}

    def hear(self) -> None:
        """Note that the guest spoke."""
        self.heard = self._clock()

    def silence(self) -> float:
        """Return the seconds since the guest was last heard."""
        return self._clock() - self.heard

    def admits_report(self) -> bool:
        """Take one report from the guest's allowance; False if it is used up."""
        now = self._clock()
        self._tokens = min(self._tokens + (now - self._filled) * _REPORTS_PER_SECOND, _REPORTS_AT_ONCE)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def misbehaved(self, kind: str, message: str) -> AgentMisbehaved | None:
        """Count a message that was ignored; return the event to log, or None while one of its kind is fresh."""
        count, silent_until = self._ignored.get(kind, (0, 0.0))
        count += 1
        now = self._clock()
        if now < silent_until:
            self._ignored[kind] = (count, silent_until)
            return None
        self._ignored[kind] = (0, now + _SECONDS_BETWEEN_EVENTS)
        return AgentMisbehaved(kind=kind, message=message, count=count)


class Sessions:
    """The session of each VM that is being started or runs."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: dict[str, Session] = {}

    def begin(self, vm_id: str, epoch: int) -> Session:
        """Start the session of an epoch; the one before, if any, is over."""
        session = Session(vm_id, epoch, clock=self._clock)
        self._sessions[vm_id] = session
        return session

    def get(self, vm_id: str) -> Session | None:
        """Return the VM's session, or None."""
        return self._sessions.get(vm_id)

    def end(self, vm_id: str) -> None:
        """End the VM's session."""
        self._sessions.pop(vm_id, None)
