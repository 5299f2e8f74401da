"""Where the node of this machine keeps its sockets and its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RUN_DIR_VARIABLE = "CELLMESH_RUN_DIR"
STATE_DIR_VARIABLE = "CELLMESH_STATE_DIR"
VMM_VARIABLE = "CELLMESH_VMM"
ENVOY_VARIABLE = "ENVOY_BIN"
EDGE_LISTEN_VARIABLE = "CELLMESH_EDGE_LISTEN"
EDGE_AUTHORIZER_VARIABLE = "CELLMESH_EDGE_AUTHORIZER"
_DEFAULT_RUN_DIR = "/run/cellmesh"
_DEFAULT_STATE_DIR = "/var/lib/cellmesh"
_DEFAULT_VMM = "cloud-hypervisor"
_DEFAULT_EDGE_LISTEN = "127.0.0.1:8443"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command was told by options and environment."""

    run_dir: Path
    """Sockets and what else lives as long as the node; CELLMESH_RUN_DIR, else /run/cellmesh."""
    state_dir: Path
    """Database, images and data disks; CELLMESH_STATE_DIR, else /var/lib/cellmesh."""
    vmm: str
    """The VMM's program; CELLMESH_VMM, else cloud-hypervisor on PATH."""
    edge_listen: str
    """Where the edge listens, as `host:port`; CELLMESH_EDGE_LISTEN, else 127.0.0.1:8443; empty for a node without."""
    edge_authorizer: Path
    """The socket of who decides about each request; CELLMESH_EDGE_AUTHORIZER, else edge/authz.sock in `run_dir`."""
    envoy: str
    """Envoy's program; ENVOY_BIN, empty for the installed one."""
    socket: Path
    """The operator socket; `--socket`, otherwise in the run directory."""

    @property
    def images_dir(self) -> Path:
        """Return the directory of the image store."""
        return self.state_dir / "images"


def settings_from(environment: Mapping[str, str], *, run_dir: Path | None, socket: Path | None) -> Settings:
    """Read the settings: options first, then the environment, then the defaults."""
    run = (run_dir or Path(environment.get(RUN_DIR_VARIABLE) or _DEFAULT_RUN_DIR)).absolute()
    return Settings(
        run_dir=run,
        state_dir=Path(environment.get(STATE_DIR_VARIABLE) or _DEFAULT_STATE_DIR).absolute(),
        vmm=environment.get(VMM_VARIABLE) or _DEFAULT_VMM,
        edge_listen=environment.get(EDGE_LISTEN_VARIABLE) or _DEFAULT_EDGE_LISTEN,
        edge_authorizer=Path(environment.get(EDGE_AUTHORIZER_VARIABLE) or run / "edge" / "authz.sock").absolute(),
        envoy=environment.get(ENVOY_VARIABLE) or "",
        socket=(socket or run / "operator.sock").absolute(),
    )
