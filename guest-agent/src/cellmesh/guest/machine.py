"""The guest as a whole: its numbers and its clock."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineInfo:
    """What the agent knows of the machine and of itself: bytes, seconds, counts."""

    kernel_release: str
    uptime: float
    memory_total: int
    memory_available: int
    disk_total: int
    disk_available: int
    agent_rss: int
    agent_modules: int


def read_machine(data: str) -> MachineInfo:
    """Read the machine's numbers now; `data` is where the data disk is mounted. Raises OSError."""
    memory = _meminfo()
    disk = os.statvfs(data)
    return MachineInfo(
        kernel_release=os.uname().release,
        uptime=time.clock_gettime(time.CLOCK_BOOTTIME),
        memory_total=memory["MemTotal"],
        memory_available=memory["MemAvailable"],
        disk_total=disk.f_blocks * disk.f_frsize,
        disk_available=disk.f_bavail * disk.f_frsize,
        agent_rss=int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE,
        agent_modules=len(sys.modules),
    )


def set_clock(seconds: float) -> float:
    """Set the clock to seconds since 1970; returns how far it was moved forward, seconds. Raises OSError."""
    adjustment = seconds - time.time()
    time.clock_settime(time.CLOCK_REALTIME, seconds)
    return adjustment


def _meminfo() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
