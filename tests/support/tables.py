"""Tables of what a test measured and does not judge, for people: build/<name>.txt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

BUILD = Path(__file__).parents[2] / "build"


def write(name: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table, and print it for whoever runs the test alone."""
    lines = [tuple(map(str, row)) for row in (headings, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    text = "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )
    BUILD.mkdir(exist_ok=True)
    (BUILD / f"{name}.txt").write_text(text)
    print(text)
