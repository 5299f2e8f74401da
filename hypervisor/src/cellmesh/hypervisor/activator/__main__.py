"""The activator's process."""

from __future__ import annotations

from cellmesh.service import process

# isort: split
from cellmesh.hypervisor.activator.process import activating
from cellmesh.hypervisor.activator.settings import ActivatorSettings


def main() -> None:
    """Serve until SIGTERM or SIGINT; exit 78 if the settings or the socket cannot be used."""
    process.run("activator", ActivatorSettings, activating)


if __name__ == "__main__":
    main()
