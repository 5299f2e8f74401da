"""Options and arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON: one object, or one a line for a stream.")]
VmArgument = Annotated[str | None, typer.Argument(metavar="[VM]", help="Id of the VM, or the unique start of it.")]
UserOption = Annotated[str | None, typer.Option("--user", metavar="UUID", help="The VM of this user.")]
ContainerArgument = Annotated[
    str, typer.Argument(metavar="[VM/]CONTAINER", help="The VM's id or the start of it, and the container's name.")
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Show what happens, and end when it is done.")]
TimeoutOption = Annotated[str, typer.Option("--timeout", metavar="TIME", help="Longest wait, such as 90s or 5m.")]


def noun(help_text: str) -> typer.Typer:
    """Return a group of commands; its help is plain, as rich would cost a third of the start-up time."""
    return typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None)
