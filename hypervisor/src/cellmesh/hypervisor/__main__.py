"""The hypervisor's process."""

from __future__ import annotations

from cellmesh.service import process

# isort: split
from cellmesh.hypervisor.node import SERVICE, serving
from cellmesh.hypervisor.settings import HypervisorSettings


def main() -> None:
    """Serve until SIGTERM or SIGINT; exit 78 if the settings or the state cannot be used."""
    process.run(SERVICE, HypervisorSettings, serving)


if __name__ == "__main__":
    main()
