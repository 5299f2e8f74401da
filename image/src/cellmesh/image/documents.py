"""Take values out of the JSON documents of an archive; what has another shape raises ArchiveInvalid."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cellmesh.image.errors import ArchiveInvalid

_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")


def hex_of(digest: object, where: str) -> str:
    """Return the hex part of a sha256 digest."""
    match = _SHA256.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        raise ArchiveInvalid(where, f"{digest!r:.100} is no sha256 digest.")
    return match[1]


def object_of(value: object, where: str) -> Mapping[str, Any]:
    """Return a JSON object."""
    if not isinstance(value, dict):
        raise ArchiveInvalid(where, f"a JSON object was expected, not {value!r:.60}.")
    return value


def array_of(value: object, where: str) -> list[Any]:
    """Return a JSON array."""
    if not isinstance(value, list):
        raise ArchiveInvalid(where, f"a JSON array was expected, not {value!r:.60}.")
    return value


def text_of(value: object, where: str) -> str:
    """Return a JSON string."""
    if not isinstance(value, str):
        raise ArchiveInvalid(where, f"a text was expected, not {value!r:.60}.")
    return value
