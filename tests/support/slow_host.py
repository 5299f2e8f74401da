"""A host that is ten times slower: processes in a cgroup that gives them a tenth of the processors."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SHARE = 0.1
_PERIOD = 100_000
_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


@contextmanager
def slowed() -> Iterator[Path]:
    """Give the file that takes the process ids of what is to be slow; all of them must have ended by the end."""
    quota = int(SHARE * len(os.sched_getaffinity(0)) * _PERIOD)
    name = f"slow-host-{secrets.token_hex(4)}"
    first = Path("/sys/fs/cgroup/cpu")
    if first.is_dir():
        group, limits = first / name, {"cpu.cfs_period_us": _PERIOD, "cpu.cfs_quota_us": quota}
    else:
        roots = [root for root in _ROOTS if "cpu" in (root / "cgroup.subtree_control").read_text().split()]
        if not roots:
            pytest.skip("this machine has no cgroup controller of processors that could slow anything down")
        group, limits = roots[0] / name, {"cpu.max": f"{quota} {_PERIOD}"}
    group.mkdir()
    try:
        for limit, value in limits.items():
            (group / limit).write_text(str(value))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()
