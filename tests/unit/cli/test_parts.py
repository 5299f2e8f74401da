"""The pure parts: input on its way, text for terminals, sizes and times."""

from __future__ import annotations

import subprocess
import sys

import hypothesis
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies

from cellmesh.cli import units
from cellmesh.cli.attach.input import InputBuffer
from cellmesh.cli.errors import ExecLostError, UsageError
from cellmesh.cli.text import TerminalText, printable


@hypothesis.given(
    data=strategies.binary(max_size=300_000),
    cuts=strategies.lists(strategies.integers(min_value=0, max_value=300_000), max_size=5),
)
def test_input_arrives_whole_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    """Whatever the far side had when a stream broke, what it gets in all is the input, then its end."""
    buffer = InputBuffer()
    buffer.feed(data)
    buffer.close()
    arrived = b""
    for limit in [*cuts, None]:
        buffer.rewind(len(arrived))
        while (frame := buffer.take()) is not None and (limit is None or len(arrived) < limit):
            assert frame.offset == len(arrived)
            arrived += frame.data
            has_ended = frame.eof
    assert arrived == data
    assert has_ended


def test_input_that_is_gone_can_not_be_sent_again() -> None:
    """A far side that forgets what it acknowledged is an error, not a hole in the input."""
    buffer = InputBuffer()
    buffer.feed(b"abcdef")
    buffer.acknowledge(4)
    with pytest.raises(ExecLostError):
        buffer.rewind(3)


@hypothesis.given(strategies.text())
def test_printable_text_is_printable(text: str) -> None:
    """No control, bidi mark or line break survives, and what is harmless stays as it is."""
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert text == shown or not text.isprintable()


@hypothesis.given(strategies.binary(), strategies.integers(min_value=1, max_value=7))
def test_terminal_text_does_not_depend_on_the_pieces(data: bytes, size: int) -> None:
    """A stream cut anywhere, within a character too, gives the same safe text."""
    whole, pieces = TerminalText(), TerminalText()
    expected = whole.feed(data) + whole.finish()
    shown = "".join(pieces.feed(data[index : index + size]) for index in range(0, len(data), size)) + pieces.finish()
    assert shown == expected
    assert all(character.isprintable() or character in "\n\t" for character in shown)


@pytest.mark.parametrize(("text", "count"), [("0", 0), ("512M", 512 << 20), ("2GiB", 2 << 30), ("3k", 3 << 10)])
def test_sizes_are_read(text: str, count: int) -> None:
    """Sizes have units that are powers of 1024."""
    assert units.parse_size(text) == count


@pytest.mark.parametrize("text", ["", "-1", "1.5G", "M", "1 M B", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """A size that can't be read is a wrong usage, never a guess."""
    with pytest.raises(UsageError):
        units.parse_size(text)


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("5", 5), ("2m", 120), ("1.5h", 5400)])
def test_times_are_read(text: str, seconds: float) -> None:
    """Times have units; a bare number is seconds."""
    assert units.parse_duration(text).total_seconds() == seconds


def test_times_are_written() -> None:
    """Ages have one unit, moments have milliseconds and are in UTC."""
    then = Timestamp(seconds=1000, nanos=7_000_000)
    assert units.age(then, 1000 + 119) == "119s"
    assert units.age(then, 1000 + 7200) == "2h"
    assert units.clock(then) == "1970-01-01T00:16:40.007Z"


def test_a_command_starts_without_what_a_node_is_made_of() -> None:
    """Each command imports all others: what only `up` needs would take them twice the time to start."""
    program = "import cellmesh.cli.__main__, sys; print(*(m for m in sys.modules if m.startswith({!r})))"
    imported = {
        name: subprocess.run(
            [sys.executable, "-c", program.format(name)], check=True, capture_output=True, text=True
        ).stdout.split()
        for name in ("cellmesh.hypervisor", "pydantic_settings", "cellmesh.cli")
    }
    assert (imported["cellmesh.hypervisor"], imported["pydantic_settings"]) == ([], [])
    # The control: what is imported is seen.
    assert "cellmesh.cli.commands.up" in imported["cellmesh.cli"]
