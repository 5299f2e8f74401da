"""Sizes, times and ages as people write and read them."""

from __future__ import annotations

import re
from datetime import timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from cellmesh.cli.errors import UsageError

_SIZE = re.compile(r"(\d+)(?:([KMGT])(?:iB|B|i)?)?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `512M` or `2GiB`; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size.", "Write a number and a unit, such as 512M or 2G.")
    return int(match[1]) << (10 * _POWERS[(match[2] or "").upper()])


def parse_duration(text: str) -> timedelta:
    """Return the time of a text such as `500ms`, `5s` or `2m`; a bare number is seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a time.", "Write a number and a unit, such as 500ms, 5s or 2m.")
    return timedelta(seconds=float(match[1]) * _SECONDS[match[2] or "s"])


def size(count: float) -> str:
    """Return bytes for reading: `512 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count == int(count) else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def age(since: Timestamp, now: float) -> str:
    """Return the time since `since` in its largest unit; `now` is in seconds since 1970."""
    if not since.seconds:
        return ""
    seconds = max(0, int(now - since.seconds))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def clock(time: Timestamp) -> str:
    """Return a time of an event: `2026-01-31T12:00:00.123Z`."""
    return f"{time.ToDatetime():%Y-%m-%dT%H:%M:%S}.{time.nanos // 1_000_000:03}Z"
