"""`cellmesh exec`: a command in a container, as if it ran here."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import typer

from cellmesh.api.common.v1 import exec_pb2
from cellmesh.cli.attach.descriptors import read_some, write_all
from cellmesh.cli.attach.session import Answers, ExecSession, Frames
from cellmesh.cli.attach.terminal import raw_mode, size_of
from cellmesh.cli.connection import STREAM_SECONDS, streaming
from cellmesh.cli.container_spec import parse_environment
from cellmesh.cli.errors import ExitCode, UsageError
from cellmesh.cli.invocation import Session, call
from cellmesh.cli.lookup import find_container
from cellmesh.cli.options import ContainerArgument, UserOption

_STDIN = 0
_CTRL_C = b"\x03"
_FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def exec_(
    context: typer.Context,
    target: ContainerArgument,
    argv: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="Program and arguments; no shell.")],
    *,
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="Pass standard input on.")] = False,
    tty: Annotated[bool, typer.Option("-t", "--tty", help="Give the command a terminal.")] = False,
    user: UserOption = None,
    env: Annotated[list[str] | None, typer.Option("-e", "--env", metavar="NAME=VALUE", help="Variable.")] = None,
    working_dir: Annotated[str, typer.Option("-w", "--workdir", help="Absolute path; the container's if absent.")] = "",
    json_output: Annotated[
        bool, typer.Option("--json", help="Print our own errors as JSON; output stays raw.")
    ] = False,
) -> None:
    """Run a command in a container: its output, signals and exit code are as if it ran here.

    125 is our failure; 126 and 127 are a program that is not executable or not there.
    """
    if tty and not os.isatty(_STDIN):
        raise UsageError("Standard input is not a terminal.", "Leave -t out.")

    _require_utf8([*argv, *(env or []), working_dir])

    async def body(session: Session) -> int:
        name = await find_container(session.node, target, user)
        frame = exec_pb2.ExecOpen(
            vm_id=name.vm_id,
            container_name=name.container_name,
            exec_id=str(uuid.uuid4()),
            argv=_without_separator(argv),
            environment=parse_environment(_with_term(env or [], tty=tty)),
            working_dir=working_dir,
            tty=tty,
            size=size_of(_STDIN) if tty else None,
        )

        def open_stream(frames: Frames) -> Answers:
            return streaming(session.node.containers.Exec(frames, timeout=STREAM_SECONDS))

        def tell() -> None:
            # A raw terminal needs the carriage return; elsewhere it does no harm.
            session.output.note("The stream broke; coming back to the command. Ctrl-C gives up.", end="\r\n")

        command = ExecSession(frame, open_stream, write=write_all, on_break=tell)
        return await _run(command, interactive=interactive, tty=tty)

    call(context, body, json_output=json_output, failure_code=ExitCode.EXEC_FAILED)


def _require_utf8(texts: list[str]) -> None:
    """Raise UsageError for a text that is not UTF-8: the contract has no other."""
    for text in texts:
        if not _is_utf8(text):
            raise UsageError(f"{os.fsencode(text)!r:.200} is not UTF-8.", "Pass what is not UTF-8 by standard input.")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _without_separator(argv: list[str]) -> list[str]:
    """Drop a `--` between container and command: the parser hands over everything after the container as it stands."""
    command = argv[1:] if argv[0] == "--" else argv
    if not command:
        raise UsageError("No command was given.", "Write it after the container: exec VM/CONTAINER -- sh.")
    return command


async def _run(command: ExecSession, *, interactive: bool, tty: bool) -> int:
    sys.stdout.flush()
    task = asyncio.current_task()
    assert task is not None
    terminal: AbstractContextManager[None] = raw_mode(_STDIN) if tty and interactive else nullcontext()
    with terminal:
        _forward_signals(command, task.cancel, tty=tty)
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(_pump(command, task.cancel, interactive=interactive, tty=tty))
            exited = await command.run()
            pump.cancel()
    return exited.exit_code


async def _pump(command: ExecSession, give_up: Callable[[], object], *, interactive: bool, tty: bool) -> None:
    """Feed standard input to the command until it ends."""
    while interactive:
        await command.input.room()
        data = await read_some(_STDIN)
        if tty and not command.is_attached and _CTRL_C in data:
            # In raw mode Ctrl-C is a byte; while no command is there to take it, it is meant for us.
            give_up()
        if not data:
            break
        command.input.feed(data)
        command.wake()
    command.input.close()
    command.wake()


def _forward_signals(command: ExecSession, give_up: Callable[[], object], *, tty: bool) -> None:
    """Hand our signals to the command; while none is attached they end us."""

    def forward(number: int) -> None:
        if command.is_attached:
            command.send_signal(number)
        else:
            give_up()

    loop = asyncio.get_running_loop()
    for number in _FORWARDED:
        loop.add_signal_handler(number, forward, number)
    if tty:
        loop.add_signal_handler(signal.SIGWINCH, lambda: command.resize(size_of(_STDIN)))


def _with_term(pairs: list[str], *, tty: bool) -> list[str]:
    """Add TERM for a command with a terminal, unless it is given."""
    if not tty or any(pair.startswith("TERM=") for pair in pairs):
        return pairs
    return [*pairs, f"TERM={os.environ.get('TERM') or 'xterm'}"]
