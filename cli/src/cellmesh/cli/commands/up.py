"""`cellmesh up`: a whole node on this machine, in the foreground."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cellmesh.cli.checks import Machine, Verdict, examine
from cellmesh.cli.commands.doctor import print_findings
from cellmesh.cli.commands.image import build_default
from cellmesh.cli.errors import CliError, ExitCode, NotFoundError
from cellmesh.cli.invocation import run
from cellmesh.cli.options import JsonOption
from cellmesh.cli.output import Output
from cellmesh.cli.settings import Settings


def up(
    context: typer.Context,
    *,
    stop_vms: Annotated[bool, typer.Option("--stop-vms", help="On Ctrl-C stop the VMs too.")] = False,
    build_image: Annotated[
        bool, typer.Option("--build-image", help="Build the guest image without asking, if there is none.")
    ] = False,
    no_edge: Annotated[
        bool, typer.Option("--no-edge", help="Without the edge: nobody reaches the containers by HTTP.")
    ] = False,
    edge_listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where the edge listens; CELLMESH_EDGE_LISTEN, else 127.0.0.1:8443."),
    ] = None,
    authorizer: Annotated[
        Path | None,
        typer.Option(metavar="SOCKET", help="Who is asked about each request; else edge/authz.sock in the run dir."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Run a node in the foreground and show its VMs; Ctrl-C stops the node and leaves its VMs running."""

    def body(found: Settings, output: Output) -> None:
        # What a node is made of would take every other command half of its start-up time.
        from cellmesh.cli.up.edge import Edge, edge_options
        from cellmesh.cli.up.node import run_node
        from cellmesh.cli.up.process import is_answered

        settings = replace(
            found,
            edge_listen="" if no_edge else edge_listen or found.edge_listen,
            edge_authorizer=(authorizer or found.edge_authorizer).absolute(),
        )
        if asyncio.run(is_answered(settings)):
            raise CliError(
                f"A node answers on {settings.socket} already.",
                "Use it, or stop it first: it is one node per run directory.",
                exit_code=ExitCode.CONFLICT,
                reason="NODE_RUNNING",
            )
        _check_machine(settings, output)
        _ensure_image(settings, output, build_image=build_image)
        edge = None if no_edge else Edge(edge_options(settings), settings, output)
        asyncio.run(run_node(settings, output, edge=edge, stop_vms=stop_vms))

    run(context, body, json_output=json_output)


def _check_machine(settings: Settings, output: Output) -> None:
    missing = [item for item in examine(Machine.here(settings, os.environ)) if item.verdict is Verdict.FAIL]
    if not missing:
        return
    if not output.json:
        print_findings(output, missing)
    names = ", ".join(item.name for item in missing)
    raise CliError(
        f"This machine lacks what a node needs: {names}.",
        "Mend it as `cellmesh doctor` says.",
        exit_code=ExitCode.FAILED,
        reason="MACHINE_UNFIT",
    )


def _ensure_image(settings: Settings, output: Output, *, build_image: bool) -> None:
    """Offer to build the guest image if there is none: nothing that takes minutes happens unasked."""
    from cellmesh.image import ImageStore

    if ImageStore(settings.images_dir).default_guest() is not None:
        return
    is_asked = sys.stdin.isatty() and output.is_terminal and not output.json
    if not build_image and not (is_asked and typer.confirm("There is no guest image. Build one now? It takes minutes")):
        raise NotFoundError(
            f"There is no guest image in {settings.images_dir}.",
            "Build one with `cellmesh image build`.",
            reason="NO_DEFAULT_IMAGE",
        )
    build_default(settings, output)
