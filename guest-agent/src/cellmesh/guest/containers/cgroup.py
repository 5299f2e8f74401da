"""One container's cgroup: its limits, its numbers, and the end of everything in it."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from cellmesh.guest.containers.model import ContainerStats, Resources

_PERIOD_US = 100_000


class Cgroup:
    """A directory of cgroup v2."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, resources: Resources) -> list[str]:
        """Make it with these limits; returns a sentence for each limit the kernel does not offer. Raises OSError."""
        self.path.mkdir(exist_ok=True)
        quota = max(resources.cpu_millis * _PERIOD_US // 1000, 1000)
        self._set("memory.max", str(resources.memory_bytes))
        self._set("pids.max", str(resources.pids))
        self._set("cpu.max", f"{quota} {_PERIOD_US}")
        # One process over the limit need not take its siblings with it.
        self._set("memory.oom.group", "0")
        missing = []
        for name, value in (("memory.swap.max", "0"), ("io.weight", f"default {resources.io_weight}")):
            try:
                self._set(name, value)
            except OSError as error:
                missing.append(f"{name} is not available: {error.strerror}")
        return missing

    def remove(self) -> None:
        """Remove it, once nothing runs in it; one that is gone already is fine. Raises OSError while busy."""
        for child in sorted(self.path.glob("**/"), reverse=True):
            child.rmdir()

    def kill(self) -> None:
        """Kill every process in it, with no way to dodge by forking."""
        try:
            self._set("cgroup.kill", "1")
        except FileNotFoundError:
            return  # It is gone, and so is all that was in it.

    def oom_kills(self) -> int:
        """Count the processes the kernel killed here for memory since it was made."""
        return self._table("memory.events").get("oom_kill", 0)

    def stats(self) -> ContainerStats:
        """Read what it uses; raises FileNotFoundError when it is gone."""
        cpu = self._table("cpu.stat")
        read, written = self._io()
        return ContainerStats(
            memory_bytes=self._number("memory.current"),
            memory_peak_bytes=self._number("memory.peak"),
            memory_limit_bytes=self._number("memory.max"),
            cpu_seconds=cpu.get("usage_usec", 0) / 1e6,
            throttled_seconds=cpu.get("throttled_usec", 0) / 1e6,
            pids=self._number("pids.current"),
            pids_refused=self._table("pids.events").get("max", 0),
            io_read_bytes=read,
            io_write_bytes=written,
            oom_kills=self.oom_kills(),
        )

    def _set(self, name: str, value: str) -> None:
        with _going():
            (self.path / name).write_text(value)

    def _read(self, name: str) -> str:
        with _going():
            return (self.path / name).read_text()

    def _number(self, name: str) -> int:
        text = self._read(name).strip()
        return int(text) if text.isdigit() else 0

    def _table(self, name: str) -> dict[str, int]:
        try:
            lines = self._read(name).splitlines()
        except FileNotFoundError:
            return {}
        return {key: int(value) for key, _, value in (line.partition(" ") for line in lines)}

    def _io(self) -> tuple[int, int]:
        totals = {"rbytes": 0, "wbytes": 0}
        for key, value in self._io_entries():
            if key in totals:
                totals[key] += int(value)
        return totals["rbytes"], totals["wbytes"]

    def _io_entries(self) -> Iterator[tuple[str, str]]:
        try:
            text = self._read("io.stat")
        except FileNotFoundError:
            return
        for word in text.split():
            key, equals, value = word.partition("=")
            if equals:
                yield key, value


@contextlib.contextmanager
def _going() -> Iterator[None]:
    """Raise FileNotFoundError for a cgroup that goes between the opening of its file and the use inside, too."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        raise FileNotFoundError(errno.ENOENT, "the cgroup is gone") from error
