"""Read a tar archive into a tree, whatever the archive tries."""

from __future__ import annotations

import math
import tarfile
from collections.abc import Iterable
from pathlib import Path

from cellmesh.image.errors import ArchiveInvalid
from cellmesh.image.tree import MAX_TARGET, Directory, Extent, File, Node, Symlink, Tree

MAX_ID = 2**32 - 2
MAX_TIME = 2**40
MODE = 0o7777


def node_of(member: tarfile.TarInfo, source: Path) -> Node | None:
    """Return what `member` puts into a tree, or None for what is never kept: devices, FIFOs, sockets.

    Extended attributes (and with them file capabilities) are dropped. Hard links are not decided here.
    """
    if not (0 <= member.uid <= MAX_ID and 0 <= member.gid <= MAX_ID and math.isfinite(member.mtime)):
        raise ArchiveInvalid(member.name, "its owner or its time is out of range.")
    mtime = min(max(int(member.mtime), 0), MAX_TIME)
    if member.isdir():
        return Directory(mode=member.mode & MODE, uid=member.uid, gid=member.gid, mtime=mtime)
    if member.issym():
        if not 0 < len(member.linkname) <= MAX_TARGET or "\0" in member.linkname:
            raise ArchiveInvalid(member.name, "the target of the link is no path.")
        return Symlink(target=member.linkname, uid=member.uid, gid=member.gid, mtime=mtime)
    if member.issparse():
        raise ArchiveInvalid(member.name, "sparse files are not supported; pack the layer without --sparse.")
    if member.isreg():
        content = Extent(path=source, offset=member.offset_data, size=member.size) if member.size else b""
        return File(content=content, mode=member.mode & MODE, uid=member.uid, gid=member.gid, mtime=mtime)
    return None


def link_target(tree: Tree, member: tarfile.TarInfo) -> File:
    """Return the file a hard link names; raises ArchiveInvalid if the tree has no such regular file."""
    target = tree.get(member.linkname)
    if not isinstance(target, File):
        raise ArchiveInvalid(member.name, f"it is a hard link to {member.linkname!r:.200}, which is no file before it.")
    return target


def add_tar(tree: Tree, members: Iterable[tarfile.TarInfo], source: Path) -> None:
    """Add the members of the uncompressed tar file at `source`."""
    for member in members:
        node = link_target(tree, member) if member.islnk() else node_of(member, source)
        if node is not None:
            tree.put(member.name, node)
