"""How much processor time a VMM had and how long it waited for a processor, from /proc/PID/task/TID/schedstat."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_NANOSECONDS = 1_000_000_000
_MOST_PROCESSES = 16
_MOST_THREADS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorTime:
    """Processor time of a process, its threads and its children since they started, seconds."""

    used: float
    """Time on a processor."""
    waited: float
    """Time in which a thread was ready to run and had no processor, be it busy with others or withheld by a limit."""

    def since(self, before: ProcessorTime) -> ProcessorTime:
        """Return what came on top; a thread that ended meanwhile takes its time with it, so never less than 0."""
        return ProcessorTime(used=max(self.used - before.used, 0.0), waited=max(self.waited - before.waited, 0.0))


def processor_time(pid: int) -> ProcessorTime:
    """Return the processor time of a VMM; 0 where the process is gone or the kernel keeps no count."""
    used = waited = 0
    processes = [pid]
    for place, process in enumerate(processes):
        if place == _MOST_PROCESSES:
            break
        for thread in _threads(process):
            try:
                on_processor, queued, _ = (thread / "schedstat").read_text().split()
                used += int(on_processor)
                waited += int(queued)
                # Last, as a kernel without CONFIG_PROC_CHILDREN has no such file.
                processes.extend(int(child) for child in (thread / "children").read_text().split())
            except (OSError, ValueError):
                continue
    return ProcessorTime(used=used / _NANOSECONDS, waited=waited / _NANOSECONDS)


def _threads(pid: int) -> list[Path]:
    directory = _PROC / str(pid) / "task"
    try:
        return list(itertools.islice(directory.iterdir(), _MOST_THREADS))
    except OSError:
        return []
