"""What can be made to go wrong, and when: rules that a VM's API and guest ask before they act."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path


class FaultKind(Enum):
    """What goes wrong at a point."""

    LOSE_REPLY = auto()
    """The action is done, then the connection is cut."""
    HANG = auto()
    """The request is not looked at until the rule is released."""
    FAIL = auto()
    """The action is refused with the rule's causes."""
    CRASH_BEFORE = auto()
    """The process is killed instead of acting."""
    CRASH_AFTER = auto()
    """The action is done, then the process is killed."""
    SILENT = auto()
    """The guest never says Hello. Its point is `guest.hello`."""


def _everywhere(_directory: Path) -> bool:
    return True


@dataclass(slots=True, kw_only=True)
class Fault:
    """One rule; `times` counts down to 0, `applies` sees the directory of the VM's API socket."""

    point: str
    kind: FaultKind
    times: int = 1
    causes: tuple[str, ...] = ("Injected fault",)
    applies: Callable[[Path], bool] = _everywhere
    released: asyncio.Event = field(default_factory=asyncio.Event)
    met: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """Let what hangs on this rule go on."""
        self.released.set()


class Faults:
    """The rules of one hub. Points are API actions such as `vm.boot`, and `guest.hello`."""

    def __init__(self) -> None:
        self._rules: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        """Add a rule and return it; `met` is set when it first strikes."""
        self._rules.append(fault)
        return fault

    def clear(self) -> None:
        """Forget all rules and release everything that hangs."""
        for rule in self._rules:
            rule.release()
        self._rules.clear()

    def take(self, point: str, directory: Path) -> Fault | None:
        """Use up one strike of the first rule for this point and VM."""
        for rule in self._rules:
            if rule.point == point and rule.times > 0 and rule.applies(directory):
                rule.times -= 1
                rule.met.set()
                return rule
        return None
