"""`cellmesh up`."""

import typer


def up(context: typer.Context) -> None:
    """Run a node."""
