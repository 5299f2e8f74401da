"""JSON logs: one line an event, no secrets, nothing in it that could forge a line or drive a terminal."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TextIO

import structlog
from opentelemetry import trace

from cellmesh.mesh.errors import sanitize

_MAX_VALUE = 4096
_MAX_TRACEBACK = 16384
_REDACTED = "[redacted]"
# Names whose values are secret by nature; matched as whole words of snake case, kebab case or camel case.
_SECRET_NAME = re.compile(
    r"(?i)(^|[_.-])(authorization|cookie|credential|credentials|password|passphrase|private_?key|api_?key|secret|token|"
    r"access_?key|session_?id)s?($|[_.-])"
)
# Shapes of the keys providers give out and of signed tokens, wherever they stand.
_SECRET_VALUE = re.compile(
    r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bAKIA[A-Z0-9]{12,}|\bAIza[A-Za-z0-9_-]{30,}"
    r"|\bxox[abps]-[A-Za-z0-9-]{10,}|(?i:\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    re.DOTALL,
)

EventDict = MutableMapping[str, Any]


def configure(*, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send the logs of this process, those of libraries too, to `stream` (stderr if None) as JSON lines."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_trace,
        structlog.processors.format_exc_info,
        redact,
    ]
    structlog.configure(
        processors=[*processors, render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *processors],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.WARNING))


class LineBudget:
    """How often somebody untrusted may make us write a line: `burst` at once, then one every `interval` seconds."""

    def __init__(self, *, burst: int = 20, interval: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = float(burst)
        self._interval = interval
        self._clock = clock
        self._tokens = float(burst)
        self._filled = clock()
        self._suppressed = 0

    def take(self) -> int | None:
        """Return how many lines were left out since the last, or None if this one is to be left out too."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) / self._interval)
        self._filled = now
        if self._tokens < 1:
            self._suppressed += 1
            return None
        self._tokens -= 1
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed


@contextmanager
def context(**names: str) -> Iterator[None]:
    """Add names such as `vm_id` or `container_name` to every line logged inside."""
    with structlog.contextvars.bound_contextvars(**names):
        yield


def add_trace(_: Any, __: str, event: EventDict) -> EventDict:
    """Add the ids of the current span."""
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event.setdefault("trace_id", trace.format_trace_id(span.trace_id))
        event.setdefault("span_id", trace.format_span_id(span.span_id))
    return event


def redact(_: Any, __: str, event: EventDict) -> EventDict:
    """Blot out secrets by name and by shape, and escape what controls a terminal; runs right before the renderer."""
    for name, value in event.items():
        if name != "exc_info" and not name.startswith("_"):
            event[name] = _clean(name, value, depth=4)
    return event


def without_secrets(text: str) -> str:
    """Return text with whatever has the shape of a provider's key blotted out."""
    return _SECRET_VALUE.sub(_REDACTED, text)


def render(_: Any, __: str, event: EventDict) -> str:
    """Write an event as one line of ASCII JSON."""
    return json.dumps(event, default=lambda value: _clean("", str(value), depth=1), sort_keys=True)


def _clean(name: str, value: Any, *, depth: int) -> Any:
    if _SECRET_NAME.search(_snake(name)):
        return _REDACTED
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping) and depth:
        return {_text(str(key), 128): _clean(str(key), item, depth=depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth:
        return [_clean("", item, depth=depth - 1) for item in list(value)[:64]]
    if name == "exception":
        # A traceback's lines are worth keeping apart; JSON keeps them in one line.
        return [_text(line, _MAX_VALUE) for line in str(value)[-_MAX_TRACEBACK:].splitlines()]
    return _text(str(value), _MAX_VALUE)


def _text(value: str, limit: int) -> str:
    return sanitize(_SECRET_VALUE.sub(_REDACTED, value), limit)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
