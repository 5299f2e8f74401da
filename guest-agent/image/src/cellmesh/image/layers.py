"""Put the layers of a container image on top of each other."""

from __future__ import annotations

import posixpath
import tarfile
from pathlib import Path

from cellmesh.image.errors import ArchiveInvalid
from cellmesh.image.tarball import add_tar
from cellmesh.image.tree import Tree

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
RESERVED = ".wh..wh."
MAX_ENTRIES = 1_000_000


def apply_layer(tree: Tree, layer: Path, name: str) -> None:
    """Apply the uncompressed layer at `layer`: first what it removes from those below, then what it adds.

    In this order a whiteout never hides what its own layer brings, wherever in the archive it stands.
    """
    try:
        with tarfile.open(layer, "r:") as archive:
            members = _members(archive, name)
            for member in members:
                _remove(tree, member.name)
            add_tar(tree, (member for member in members if not _is_whiteout(member.name)), layer)
    except (tarfile.TarError, UnicodeError, ValueError, OverflowError) as error:
        raise ArchiveInvalid(name, f"the layer is no sound tar archive ({error}).") from error


def _members(archive: tarfile.TarFile, name: str) -> list[tarfile.TarInfo]:
    members: list[tarfile.TarInfo] = []
    for member in archive:
        if len(members) == MAX_ENTRIES:
            raise ArchiveInvalid(name, f"the layer has more than {MAX_ENTRIES} entries.")
        members.append(member)
    return members


def _is_whiteout(path: str) -> bool:
    return posixpath.basename(path.rstrip("/")).startswith(WHITEOUT)


def _remove(tree: Tree, path: str) -> None:
    """Do what a whiteout says; https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts."""
    parent, _, base = path.rstrip("/").rpartition("/")
    if base == OPAQUE:
        directory = tree.directory(parent, create=False)
        if directory is not None:
            directory.children.clear()
    elif base.startswith(WHITEOUT) and not base.startswith(RESERVED):
        hidden = base.removeprefix(WHITEOUT)
        if hidden in {"", ".", ".."}:
            raise ArchiveInvalid(path, "the whiteout names no file.")
        tree.remove(f"{parent}/{hidden}")
