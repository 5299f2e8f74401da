"""Unite the members' dependencies, so that each is written once, in the folder that needs it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

MEMBERS = ("gen", "mesh", "service", "hypervisor", "guest-agent", "image", "cli")


class MembersMetadataHook(MetadataHookInterface):
    """Fill `dependencies` of the root project from its members."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Collect what comes from outside the repository."""
        root = Path(self.root)
        wanted: set[str] = set()
        for member in MEMBERS:
            project = tomllib.loads((root / member / "pyproject.toml").read_text())["project"]
            wanted.update(name for name in project["dependencies"] if not name.startswith("cellmesh-"))
        metadata["dependencies"] = sorted(wanted)
