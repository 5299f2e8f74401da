"""Put the layers of a container image on top of each other, as an overlay file system does.

Each layer becomes a tree of its own first; then the trees are merged. So a path of a layer never leads through a link
of a layer below it: an upper directory replaces a lower link, and the link's target stays as it is.
"""

from __future__ import annotations

from pathlib import Path

from cellmesh.image.errors import ArchiveInvalid
from cellmesh.image.tarball import link_target, members, node_of
from cellmesh.image.tree import Directory, Dropped, Tree

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
RESERVED = ".wh..wh."


def apply_layer(tree: Tree, layer: Path, name: str) -> None:
    """Merge the uncompressed layer at `layer` into `tree`; raises ArchiveInvalid or InvalidImagePath."""
    merge(tree.root, read_layer(layer, name, below=tree).root)


def read_layer(layer: Path, name: str, *, below: Tree) -> Tree:
    """Return the layer's own tree, with what it hides of the tree `below`; the bounds count for both together.

    A hard link may name a file of `below`.
    """
    tree = Tree(census=below.census)
    for member in members(layer, name):
        if not _take_whiteout(tree, member.name):
            node = link_target(tree, member, below) if member.islnk() else node_of(member, layer)
            tree.put(member.name, node)
    return tree


def _take_whiteout(tree: Tree, path: str) -> bool:
    """Tell whether `path` is a whiteout; then the directory it lies in remembers what it hides.

    https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts
    """
    parent, _, base = path.rstrip("/").rpartition("/")
    if not base.startswith(WHITEOUT):
        return False
    if base.startswith(RESERVED) and base != OPAQUE:
        return True
    hidden = base.removeprefix(WHITEOUT)
    if hidden in {"", ".", ".."}:
        raise ArchiveInvalid(path, "the whiteout names no file.")
    directory = tree.directory(parent)
    assert directory is not None
    if base == OPAQUE:
        directory.opaque = True
    else:
        directory.hidden.add(hidden)
    return True


def merge(lower: Directory, upper: Directory) -> None:
    """Merge `upper` into `lower`: directories are united, everything else of `upper` replaces what `lower` has.

    What a layer hides it hides of the layers below, never of itself. A device is not kept, but hides as it would have.
    """
    pending = [(lower, upper)]
    while pending:
        below, above = pending.pop()
        if not above.implied:
            below.adopt(above)
        if above.opaque:
            below.children.clear()
        for name in above.hidden:
            below.children.pop(name, None)
        for name, node in above.children.items():
            there = below.children.get(name)
            if isinstance(node, Directory):
                if not isinstance(there, Directory):
                    # A fresh one, for what is below `node` may hide and drop too.
                    there = below.children[name] = Directory(mtime=node.mtime)
                pending.append((there, node))
            elif isinstance(node, Dropped):
                below.children.pop(name, None)
            else:
                below.children[name] = node
