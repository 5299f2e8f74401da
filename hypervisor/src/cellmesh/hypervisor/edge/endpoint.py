"""What answers for a route."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A unix socket, and whose it is: with these the access log says which container answered."""

    path: Path
    vm_id: str = ""  # empty: the activator, which answers for a container that cannot
    container: str = ""
    epoch: int = 0
    generation: int = 0


Endpoints = Mapping[str, Endpoint | None]
"""Changes of clusters by name; None is one that is gone."""
