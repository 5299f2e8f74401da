"""The event monitor's file: pretty-printed JSON objects, a blank line after each, time since the start."""

from __future__ import annotations

import json
import os
import time


class EventLog:
    """Appends events to a descriptor; without one they go nowhere."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._start = time.monotonic_ns()

    def write(self, source: str, event: str, properties: dict[str, str] | None = None) -> None:
        """Append one event."""
        if self._descriptor is None:
            return
        seconds, nanos = divmod(time.monotonic_ns() - self._start, 1_000_000_000)
        record = {
            "timestamp": {"secs": seconds, "nanos": nanos},
            "source": source,
            "event": event,
            "properties": properties,
        }
        os.write(self._descriptor, json.dumps(record, indent=2).encode() + b"\n\n")
