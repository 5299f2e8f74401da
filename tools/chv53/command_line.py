"""The flags of cloud-hypervisor that the doubles take; any other is refused, as the real one refuses unknown ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_FLAGS = frozenset({"--api-socket", "--event-monitor", "--log-file", "--seccomp"})
USAGE_STATUS = 2


class UsageError(Exception):
    """The command line cannot be taken; the text is for standard error."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"error: {problem}\n\nUsage: cloud-hypervisor [OPTIONS]\n\nFor more information, try '--help'.\n"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says; `version` asks for the version and nothing else."""

    api_socket: Path
    event_monitor: Path | None = None
    log_file: Path | None = None
    version: bool = False


def parse(given: list[str]) -> Options:
    """Read the command line; raises UsageError."""
    if given and given[0] in {"--version", "-V"}:
        return Options(api_socket=Path(), version=True)
    values: dict[str, str] = {}
    rest = list(given)
    while rest:
        flag, _, value = rest.pop(0).partition("=")
        if flag not in _FLAGS:
            raise UsageError(f"unexpected argument '{flag}' found")
        if not value and not rest:
            raise UsageError(f"a value is required for '{flag}' but none was supplied")
        values[flag] = value or rest.pop(0)
    if "--api-socket" not in values:
        raise UsageError("the following required arguments were not provided:\n  --api-socket <api-socket>")
    return Options(
        api_socket=_path(values["--api-socket"]),
        event_monitor=_path(values["--event-monitor"]) if "--event-monitor" in values else None,
        log_file=Path(values["--log-file"]) if "--log-file" in values else None,
    )


def _path(value: str) -> Path:
    return Path(value.removeprefix("path="))
