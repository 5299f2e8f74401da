"""The tree of commands."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from cellmesh.cli import invocation
from cellmesh.cli.commands import audit, container, doctor, events, exec_, image, logs, node, route, up, vm

_EPILOG = (
    "Exit codes: 0 well, 1 bad news, 2 usage, 3 not found, 4 no node or guest answers, 5 its state does not allow it, "
    "6 no room, 7 not allowed, 8 too late, 9 not reached, 10 a fault, 74 output lost, 130 Ctrl-C; "
    "exec: the command's own, or 125."
)

# Plain help: rich would cost a third of the start-up time.
app = typer.Typer(
    name="cellmesh",
    help="One microVM per user, several containers inside.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(value: bool) -> None:  # noqa: FBT001  # the shape of an option's callback
    if value:
        typer.echo(f"cellmesh {metadata.version('cellmesh')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    *,
    run_dir: Annotated[
        Path | None, typer.Option(help="The node's run directory; CELLMESH_RUN_DIR, else /run/cellmesh.")
    ] = None,
    socket: Annotated[Path | None, typer.Option(help="The operator socket, if not in the run directory.")] = None,
    version: Annotated[  # noqa: ARG001  # its callback acts
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One microVM per user, several containers inside."""
    invocation.root(context, run_dir=run_dir, socket=socket)


app.command()(up.up)
app.add_typer(vm.app, name="vm")
app.add_typer(container.app, name="container")
app.add_typer(route.app, name="route")
# Whatever stands after the container belongs to the command, options too.
app.command("exec", context_settings={"allow_interspersed_args": False})(exec_.exec_)
app.command()(logs.logs)
app.command()(events.events)
app.add_typer(audit.app, name="audit")
app.add_typer(image.app, name="image")
app.add_typer(node.app, name="node")
app.command()(doctor.doctor)
