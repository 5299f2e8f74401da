"""Processes as the kernel knows them: identity from /proc, waiting on a pidfd, starting without copying our threads."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellmesh.hypervisor.vmm.errors import LaunchFailed

_PROC = Path("/proc")
_NOFILE = 8192
# No command line of ours comes near.
_LONGEST = 16384
_EXEC_SECONDS = 0.0002
_TOOLS = "/usr/bin:/bin:/usr/sbin:/sbin:/run/current-system/sw/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Privileges:
    """What a started process may be and use."""

    uid: int
    separate: bool
    """Whether the process gets an own uid; only root can give one."""
    groups: tuple[int, ...]
    file_bytes: int
    """Largest file it may write (RLIMIT_FSIZE)."""


def boot_id() -> str:
    """Return the id of this boot of the host."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """Return when a live process started, in clock ticks since boot; None if there is none or it is a zombie."""
    fields = _fields(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def _start_ticks_of_any(pid: int) -> int | None:
    """Return when a process started, one that is a zombie as well; None if there is none."""
    fields = _fields(pid)
    return None if fields is None else int(fields[19])


def _fields(pid: int) -> list[str] | None:
    """Return what /proc says of a process from its state on."""
    stat = _read(f"/proc/{pid}/stat")
    # The name in parentheses may hold anything, so fields are counted from the last closing one.
    return None if stat is None else stat.rpartition(b")")[2].decode().split()


def _read(path: str) -> bytes | None:
    """Return the beginning of a file of a process, None if that is gone.

    A node with 500 VMs reads a thousand of these to find one process: a Path would cost three times the read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        return os.read(descriptor, _LONGEST)
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)


def is_alive(pid: int, ticks: int) -> bool:
    """Say whether the process that started at that tick is still alive; a reused pid is not."""
    return pid > 0 and start_ticks(pid) == ticks


def argv(pid: int) -> tuple[str, ...]:
    """Return the arguments of a process, none if it is gone."""
    return tuple(os.fsdecode(_read(f"/proc/{pid}/cmdline") or b"").split("\0")[:-1])


def every_argv() -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield pid and arguments of every process that has any."""
    for name in os.listdir(_PROC):  # noqa: PTH208 - see _read
        if name.isdecimal() and (found := argv(int(name))):
            yield int(name), found


def tool(name: str) -> str | None:
    """Return the path of a system tool, looked for where systems keep them and not where our environment says."""
    return shutil.which(name, path=_TOOLS)


def confined(command: Sequence[str], privileges: Privileges) -> list[str]:
    """Return the command behind tools that limit and lower it and then become it (exec keeps the pid).

    They do it after exec because a Python callback between fork and exec deadlocks under gRPC's threads.
    """
    prlimit, setpriv = tool("prlimit"), tool("setpriv")
    if prlimit is None or setpriv is None:
        raise LaunchFailed("setpriv and prlimit are needed to lower a VM's privileges; install util-linux.")
    limits = [f"--nofile={_NOFILE}:{_NOFILE}", "--core=0:0", f"--fsize={privileges.file_bytes}:{privileges.file_bytes}"]
    lowered = ["--no-new-privs"]
    if privileges.separate:
        groups = ",".join(str(group) for group in privileges.groups)
        lowered += [f"--reuid={privileges.uid}", f"--regid={privileges.uid}"]
        lowered += [f"--groups={groups}" if groups else "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    return [prlimit, *limits, setpriv, *lowered, *command]


def start(command: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> int:
    """Start a process in a session of its own, without our files or environment, and return its pid.

    It blocks for the millisecond vfork and exec take: in a thread it could be started after its caller was cancelled.
    """
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            close_fds=True,
        )
    except OSError as error:
        raise LaunchFailed(f"{command[0]} could not be started: {error}.") from error
    process.returncode = 0  # it outlives us and is reaped by pid; the destructor must not complain
    while not argv(process.pid) and start_ticks(process.pid) is not None:
        time.sleep(_EXEC_SECONDS)  # the kernel shows the new arguments a moment after exec, and we are found by them
    return process.pid


async def wait(pid: int, ticks: int, *, seconds: float | None = None) -> bool:
    """Wait until the process is gone and say whether it is; a pidfd tells within milliseconds, child or not."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        # A zombie may have threads that still die and hold its files; the pidfd waits for the last of them.
        if _start_ticks_of_any(pid) != ticks:
            return True
        async with asyncio.timeout(seconds):
            await _readable(fd)
    except TimeoutError:
        return False
    finally:
        os.close(fd)
    return True


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def send_signal(pid: int, ticks: int, number: signal.Signals) -> None:
    """Signal exactly that process: the pidfd is opened first, so a reused pid is never hit."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(pid, ticks):
            signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return
    finally:
        os.close(fd)


def reap(pid: int) -> int | None:
    """Collect a dead child and return its wait status; None if it lives or is not our child."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return status if found else None
