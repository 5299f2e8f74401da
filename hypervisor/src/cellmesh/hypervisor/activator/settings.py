"""What the activator reads from CELLMESH_* at its start: the hypervisor's environment, and a little more."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from cellmesh.hypervisor.settings import HypervisorSettings

_EDGE_SOCKET = "edge.sock"
_ACTIVATOR_SOCKET = "activator.sock"


class ActivatorSettings(HypervisorSettings):
    """The settings of one node's activator."""

    wait_budget: float = Field(default=60.0, gt=0)
    """Seconds a request may have to wait before it is told that this is longer than usual."""

    @property
    def edge_socket(self) -> Path:
        """Return where the hypervisor is asked."""
        return self.edge_dir / _EDGE_SOCKET

    @property
    def activator_socket(self) -> Path:
        """Return where requests come in."""
        return self.edge_dir / _ACTIVATOR_SOCKET
