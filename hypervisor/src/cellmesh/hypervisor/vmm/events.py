"""What a VMM wrote to its event monitor: a run of JSON objects in a file that its own uid may also write."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cellmesh.hypervisor.vmm.model import ExitReason

_TAIL = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What the events say happened in this VMM."""

    reboots: int
    panicked: bool
    shut_down: bool
    """The VMM ended in order."""

    def reason(self, *, asked: bool, killed: bool) -> ExitReason:
        """Say why the VMM ended; `asked` means we asked for it, `killed` that a signal ended it."""
        if self.panicked and not asked:
            return ExitReason.PANIC
        if killed:
            return ExitReason.KILLED
        if asked:
            return ExitReason.STOPPED
        return ExitReason.GUEST_SHUTDOWN if self.shut_down else ExitReason.UNKNOWN


def history(path: Path) -> History:
    """Read the newest 64 KiB of events; a file that is missing, odd or a link counts as no events."""
    names = _names(_tail(path))
    return History(
        reboots=names.count(("vm", "rebooted")),
        panicked=("guest", "panic") in names,
        shut_down=("vmm", "shutdown") in names or ("vm", "shutdown") in names,
    )


def _tail(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return ""
        file.seek(max(0, found.st_size - _TAIL))
        return file.read(_TAIL).decode("utf-8", "replace")


def _names(text: str) -> list[tuple[str, str]]:
    decoder = json.JSONDecoder()
    names: list[tuple[str, str]] = []
    position = text.find("{")
    while position >= 0:
        try:
            event, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            # The tail may begin inside an event.
            position = text.find("\n{", position)
            position = position + 1 if position >= 0 else -1
            continue
        if isinstance(event, dict):
            names.append((str(event.get("source")), str(event.get("event"))))
        position = text.find("{", end)
    return names
