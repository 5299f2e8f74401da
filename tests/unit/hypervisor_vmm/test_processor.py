"""What the kernel says of a VMM's processor time, of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

from cellmesh.hypervisor.vmm.processor import ProcessorTime, processor_time

SECONDS = 120.0
SPIN = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SPIN!r}])"


def until(pid: int, holds: Callable[[ProcessorTime], bool]) -> None:
    """Look at a process until something holds."""
    deadline = time.monotonic() + SECONDS
    while not holds(processor_time(pid)):
        assert time.monotonic() < deadline, processor_time(pid)
        time.sleep(0.02)


def test_two_that_share_a_processor_wait_for_it() -> None:
    """Each of two that spin on one processor gets time, and waits for it while the other has it."""
    spinners = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(2)]
    try:
        for spinner in spinners:
            until(spinner.pid, lambda spent: spent.used > 0.1 and spent.waited > 0.1)
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def test_children_count() -> None:
    """What a VMM's child uses counts, as a VMM may do its work in one."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], start_new_session=True)
    try:
        until(parent.pid, lambda spent: spent.used > 1.0)
    finally:
        os.killpg(parent.pid, 9)
        parent.wait()


def test_a_process_that_is_gone_used_nothing() -> None:
    """The VMM may end between two looks."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert processor_time(gone.pid) == ProcessorTime(used=0.0, waited=0.0)
