"""Everything that is printed: tables for people, plain text where nobody looks, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from cellmesh.cli.errors import CliError
from cellmesh.cli.text import printable

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console
    from rich.table import Table

JsonObject = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A piece of a table: its text, and its style on a terminal with colours."""

    text: str
    style: str = ""


class Output:
    """Where a command prints to. Text may be of any origin: it is escaped here, and never taken for markup."""

    def __init__(self, *, json_output: bool, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.json = json_output
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr
        self._console: Console | None = None
        self.is_terminal = self._stdout.isatty() and os.environ.get("TERM") != "dumb"

    def console(self) -> Console:
        """Return the rich console, which takes no markup from what it prints; NO_COLOR is rich's own to honour."""
        if self._console is None:
            from rich.console import Console

            # One for all: a spinner makes room only for what its own console prints.
            self._console = Console(file=self._stdout, markup=False, highlight=False, emoji=False)
        return self._console

    def line(self, text: str) -> None:
        """Print one line."""
        print(printable(text), file=self._stdout, flush=True)

    def styled(self, *cells: Cell) -> None:
        """Print cells on one line, in colour on a terminal."""
        if not self.is_terminal:
            self.line(" ".join(cell.text for cell in cells))
            return
        from rich.text import Text

        pieces = [Text(printable(cell.text), style=cell.style) for cell in cells]
        self.console().print(Text(" ").join(pieces), soft_wrap=True)

    def note(self, text: str, *, end: str = "\n") -> None:
        """Tell the person something that is not part of the answer."""
        if not self.json:
            print(printable(text), file=self._stderr, end=end, flush=True)

    def document(self, value: JsonObject) -> None:
        """Print a JSON object on one line."""
        print(json.dumps(value, sort_keys=True), file=self._stdout, flush=True)

    def message(self, message: Message) -> None:
        """Print a message of the contracts as ProtoJSON on one line, with the contracts' field names."""
        self.document(as_json(message))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Print a table: fitted to a terminal, otherwise plain columns that `awk` can read."""
        if self.is_terminal:
            self._rich_table(columns, rows)
        else:
            self._plain_table(columns, rows)

    def fields(self, fields: Sequence[tuple[str, Cell]]) -> None:
        """Print one thing, field by field."""
        width = max(len(name) for name, _ in fields)
        for name, cell in fields:
            self.styled(Cell(text=name.ljust(width), style="bold"), cell)

    def _rich_table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        self.console().print(rich_table(columns, rows))

    def _plain_table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        # An empty cell would shift the columns after it for everything that splits at blanks.
        lines = [list(columns), *([printable(cell.text) or "-" for cell in row] for row in rows)]
        widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
        for line in lines:
            print("  ".join(map(str.ljust, line, widths)).rstrip(), file=self._stdout)
        self._stdout.flush()

    def error(self, error: CliError) -> None:
        """Print an error: one line what happened, one line what to do; an object on one line with `--json`."""
        if self.json:
            value = {
                "error": {
                    "reason": error.reason,
                    "message": error.what,
                    "fix": error.fix,
                    "context": list(error.context),
                    "exit_code": int(error.exit_code),
                }
            }
            print(json.dumps(value, sort_keys=True), file=self._stderr, flush=True)
            return
        for line in error.context:
            print(f"  | {printable(line)}", file=self._stderr)
        print(f"error: {printable(error.what)}", file=self._stderr)
        if error.fix:
            print(f"       {printable(error.fix)}", file=self._stderr)
        self._stderr.flush()


def rich_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """Return the table as something rich can print or keep live."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell.text), style=cell.style) for cell in row))
    return table


def as_json(message: Message) -> dict[str, object]:
    """Return a message as ProtoJSON with the contracts' field names and every plain field."""
    from google.protobuf.json_format import MessageToDict

    fields: dict[str, object] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return fields
