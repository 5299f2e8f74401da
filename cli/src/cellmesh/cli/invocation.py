"""One run of the command: settings, output, connection, and the exit code of whatever goes wrong."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import typer

from cellmesh.cli import streams
from cellmesh.cli.connection import Node, connect
from cellmesh.cli.errors import CliError, ExitCode, UsageError
from cellmesh.cli.output import Output
from cellmesh.cli.refusal import explain
from cellmesh.cli.settings import Settings, settings_from

_OWN_CODES = frozenset({ExitCode.USAGE, ExitCode.EXEC_NOT_EXECUTABLE, ExitCode.EXEC_NOT_THERE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a command that talks to the node works with."""

    settings: Settings
    output: Output
    node: Node
    request_id: str
    """The intent of this invocation: kept across its retries, so that nothing happens twice."""


Body = Callable[[Session], Awaitable[int | None]]
LocalBody = Callable[[Settings, Output], int | None]


def settings_of(context: typer.Context) -> Settings:
    """Return the settings the root command left in the context."""
    settings = context.find_root().obj
    return settings if isinstance(settings, Settings) else settings_from(os.environ, run_dir=None, socket=None)


def call(context: typer.Context, body: Body, *, json_output: bool, failure_code: ExitCode | None = None) -> None:
    """Run a command against the node; raises typer.Exit with its exit code."""

    def local(settings: Settings, output: Output) -> int | None:
        return asyncio.run(_with_node(settings, output, body))

    run(context, local, json_output=json_output, failure_code=failure_code)


def run(context: typer.Context, body: LocalBody, *, json_output: bool, failure_code: ExitCode | None = None) -> None:
    """Run a command; raises typer.Exit with its exit code, or `failure_code` for failures not in _OWN_CODES."""
    output = Output(json_output=json_output)
    try:
        code = body(settings_of(context), output)
    except (KeyboardInterrupt, asyncio.CancelledError):
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough.
        streams.discard(1)
        code = ExitCode.OK
    except Exception as error:
        failure = _explained(error)
        if failure is None:
            raise
        output.error(failure)
        code = failure.exit_code if failure_code is None or failure.exit_code in _OWN_CODES else failure_code
    raise typer.Exit(int(code or ExitCode.OK))


async def _with_node(settings: Settings, output: Output, body: Body) -> int | None:
    async with connect(settings.socket) as node:
        session = Session(settings=settings, output=output, node=node, request_id=str(uuid.uuid4()))
        return await body(session)


def _explained(error: Exception) -> CliError | None:
    cause = _first_of(error)
    if isinstance(cause, UnicodeEncodeError):
        # Output takes any text; an argument with other bytes has no place in a message of the contracts.
        return UsageError(f"The value {cause.object!r} is not UTF-8.", "Give it as UTF-8.")
    return cause if isinstance(cause, CliError) else explain(cause)


def _first_of(error: Exception) -> Exception:
    """Return the first failure of a group of them: the others failed because of it."""
    return _first_of(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


def root(context: typer.Context, *, run_dir: Path | None, socket: Path | None) -> None:
    """Keep what every command needs to know in the context."""
    context.obj = settings_from(os.environ, run_dir=run_dir, socket=socket)
