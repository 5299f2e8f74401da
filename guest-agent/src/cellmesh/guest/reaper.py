"""Children: starting them, and collecting them as PID 1 must."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A running child: its number, and the exit code it will end with (128 + signal for a signal)."""

    pid: int
    exited: asyncio.Future[int]

    def send_signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal, to its whole process group if asked, unless the process has been collected already."""
        if not self.exited.done():
            for send in (os.killpg, os.kill) if group else (os.kill,):
                with contextlib.suppress(ProcessLookupError):
                    send(self.pid, number)


class Reaper:
    """Collects every dead child, and every orphan that fell to us."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._adoptions = 0
        self._orphans: dict[int, int] = {}

    def attach(self) -> None:
        """Collect on each SIGCHLD of the running loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.collect)
        self.collect()

    def detach(self) -> None:
        """Stop collecting."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    def collect(self) -> None:
        """Collect all that are dead now."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            self._deliver(pid, code if code >= 0 else 128 - code)

    def _deliver(self, pid: int, code: int) -> None:
        waiting = self._waiting.pop(pid, None)
        if waiting is not None:
            if not waiting.done():
                waiting.set_result(code)
        elif self._adoptions:
            self._orphans[pid] = code

    def spawn(
        self,
        argv: Sequence[str],
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        *,
        environment: Mapping[str, str] = _ENVIRONMENT,
    ) -> Process:
        """Start a program with these descriptors, /dev/null in place of None; raises OSError."""
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
        for target, source in enumerate((stdin, stdout, stderr)):
            if source is None:
                actions.append((os.POSIX_SPAWN_OPEN, target, "/dev/null", os.O_RDWR, 0))
            else:
                actions.append((os.POSIX_SPAWN_DUP2, source, target))
        # Python ignores SIGPIPE, and who was started by nohup SIGHUP; a program that inherits that fails in ways its
        # author never saw.
        reset = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP]
        pid = os.posix_spawnp(
            argv[0], list(argv), dict(environment), file_actions=actions, setsigdef=reset, setsid=True
        )
        return Process(pid=pid, exited=self._register(pid))

    @contextlib.contextmanager
    def adopting(self) -> Iterator[None]:
        """Remember orphans that die inside this block, so that `adopt` finds how they ended."""
        self._adoptions += 1
        try:
            yield
        finally:
            self._adoptions -= 1
            if not self._adoptions:
                self._orphans.clear()

    def adopt(self, pid: int) -> Process:
        """Take over a grandchild whose parent has exited; call inside `adopting`."""
        code = self._orphans.pop(pid, None)
        exited = self._register(pid)
        if code is not None:
            self._deliver(pid, code)
        return Process(pid=pid, exited=exited)

    def _register(self, pid: int) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[pid] = future
        return future
