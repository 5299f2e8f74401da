"""`cellmesh doctor`: what this machine lacks."""

import typer


def doctor(context: typer.Context) -> None:
    """Check this machine."""
