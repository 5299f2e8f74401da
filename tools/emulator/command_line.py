"""The flags of cloud-hypervisor that the emulator takes; any other is refused, as the real one refuses unknown ones."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

BUILD_VERSION = "v53.0-emulated-qemu-tcg"
_USAGE_EXIT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says."""

    api_socket: Path
    event_monitor: Path | None
    log_file: Path | None


def parse(given: list[str]) -> Options:
    """Read the command line; prints and exits for --version and for what it does not take."""
    if given and given[0] in {"--version", "-V"}:
        sys.stdout.write(f"cloud-hypervisor {BUILD_VERSION}\n")
        raise SystemExit(0)
    values: dict[str, str] = {}
    rest = list(given)
    while rest:
        flag, _, value = rest.pop(0).partition("=")
        if flag not in {"--api-socket", "--event-monitor", "--log-file", "--seccomp"}:
            refuse(f"unexpected argument '{flag}' found")
        values[flag] = value or (rest.pop(0) if rest else refuse(f"a value is required for '{flag}'"))
    if "--api-socket" not in values:
        refuse("the following required arguments were not provided: --api-socket <api-socket>")
    log_file = values.get("--log-file")
    monitor = values.get("--event-monitor")
    return Options(
        api_socket=Path(values["--api-socket"].removeprefix("path=")),
        event_monitor=Path(monitor.removeprefix("path=")) if monitor else None,
        log_file=Path(log_file) if log_file else None,
    )


def refuse(problem: str) -> NoReturn:
    """Print a usage error and exit with status 2."""
    sys.stderr.write(f"error: {problem}\n\nUsage: cloud-hypervisor [OPTIONS]\n\nFor more information, try '--help'.\n")
    raise SystemExit(_USAGE_EXIT)
