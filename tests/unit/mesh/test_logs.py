"""A log is one JSON line an event, without secrets, whatever was put in."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from cellmesh.mesh import logs

CANARY = "sk-live0123456789abcdefXYZ"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Give what is logged, and put logging back as it was."""
    root = logging.getLogger()
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    written = io.StringIO()
    logs.configure(level="INFO", stream=written)
    yield written
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_context_is_on_every_line_inside(stream: io.StringIO) -> None:
    """Names bound around a call are on its lines and on no later ones, those of libraries too."""
    with logs.context(vm_id="vm-1", container_name="web"):
        structlog.get_logger().info("inside", size=3)
        logging.getLogger("library").warning("from a library")
    structlog.get_logger().info("outside")
    inside, library, outside = _lines(stream)
    assert inside["vm_id"] == library["vm_id"] == "vm-1"
    assert inside["container_name"] == "web"
    assert (inside["event"], inside["level"], inside["size"]) == ("inside", "info", 3)
    assert library["event"] == "from a library"
    assert "vm_id" not in outside


@pytest.mark.parametrize(
    "fields",
    [
        {"password": "hunter2-canary"},
        {"apiKey": "hunter2-canary"},
        {"headers": {"Authorization": "hunter2-canary", "set-cookie": "hunter2-canary"}},
        {"note": f"called with {CANARY}"},
        {"items": [{"deep": [f"x {CANARY} y"]}]},
        {"note": "Authorization: Bearer hunter2-canary"},
        {"note": "-----BEGIN EC PRIVATE KEY-----\nhunter2-canary\n-----END EC PRIVATE KEY-----"},
    ],
)
def test_secrets_are_blotted_out(stream: io.StringIO, fields: dict[str, Any]) -> None:
    """By name and by shape, at any depth."""
    structlog.get_logger().info("event", **fields)
    assert "canary" not in stream.getvalue()
    assert CANARY not in stream.getvalue()
    assert "[redacted]" in stream.getvalue()


def test_secret_in_an_exception_is_blotted_out(stream: io.StringIO) -> None:
    """A traceback keeps its lines and loses the key in its message."""
    try:
        raise ValueError(f"provider said no to {CANARY}")
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = _lines(stream)
    assert line["exception"][0].startswith("Traceback")
    assert CANARY not in stream.getvalue()


def test_ordinary_names_are_kept(stream: io.StringIO) -> None:
    """What only looks like a secret's name is of use in a log."""
    structlog.get_logger().info("e", keyboard="k", monkey="m", tokenizer="t", caller="c", reason="TOKENS_GONE")
    assert "[redacted]" not in stream.getvalue()


@given(text=st.text(), key=st.text(min_size=1).filter(lambda key: key not in {"event", "self", "exc_info"}))
def test_nothing_forges_a_line(text: str, key: str) -> None:
    """Whatever a guest writes, its event stays one line of printable ASCII."""
    event = logs.redact(None, "info", {"event": text, key: {text: [text]}})
    line = logs.render(None, "info", event)
    assert line.isascii()
    assert line.isprintable()
    assert isinstance(json.loads(line), dict)


def test_unknown_level_is_refused() -> None:
    """A level that is none is not taken for silence."""
    with pytest.raises(KeyError):
        logs.configure(level="LOUD")
