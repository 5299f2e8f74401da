"""Where the node of this machine keeps its sockets and its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RUN_DIR_VARIABLE = "CELLMESH_RUN_DIR"
STATE_DIR_VARIABLE = "CELLMESH_STATE_DIR"
VMM_VARIABLE = "CELLMESH_VMM"
_DEFAULT_RUN_DIR = "/run/cellmesh"
_DEFAULT_STATE_DIR = "/var/lib/cellmesh"
_DEFAULT_VMM = "cloud-hypervisor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command was told by options and environment."""

    run_dir: Path
    """Sockets and what else lives as long as the node; CELLMESH_RUN_DIR, else /run/cellmesh."""
    state_dir: Path
    """Database, images and data disks; CELLMESH_STATE_DIR, else /var/lib/cellmesh."""
    vmm: str
    """The VMM's program; CELLMESH_VMM, else cloud-hypervisor on PATH."""
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
        socket=(socket or run / "operator.sock").absolute(),
    )
