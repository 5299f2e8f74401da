"""Entry of the `cellmesh` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from typer.exceptions import TyperException

from cellmesh.cli import streams
from cellmesh.cli.app import app
from cellmesh.cli.errors import CliError, ExitCode, UsageError
from cellmesh.cli.output import Output


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    if argv is None:
        streams.prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Before the line is understood, this is the best guess of how errors should look.
    output = Output(json_output="--json" in arguments)
    try:
        code = int(app(args=arguments, prog_name="cellmesh", standalone_mode=False) or ExitCode.OK)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return int(ExitCode.OK)
    except CliError as error:
        output.error(error)
        return int(error.exit_code)
    except TyperException as error:
        text = error.format_message()
        if text.startswith("Usage:"):
            # No command was named: the text is the help itself.
            print(text, file=sys.stderr)
        else:
            output.error(UsageError(text, f"See `{_command_of(error)} --help`."))
        return int(ExitCode.USAGE)


def _command_of(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    return str(getattr(context, "command_path", "cellmesh"))


if __name__ == "__main__":
    sys.exit(main())
