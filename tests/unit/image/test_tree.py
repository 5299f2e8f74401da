"""The tree an archive shapes: lookups stay below its root, whatever links and paths say."""

from __future__ import annotations

import pytest

from cellmesh.image import InvalidImagePath
from cellmesh.image.tree import MAX_DEPTH, Directory, File, Symlink, Tree, prune, walk


def test_put_follows_a_linked_directory() -> None:
    """A file below a link lands in the directory the link names, as it would in a container."""
    tree = Tree()
    tree.put("usr/lib", Directory())
    tree.put("lib", Symlink(target="usr/lib"))
    tree.put("lib/x", File(content=b"x"))
    assert isinstance(tree.get("usr/lib/x"), File)


@pytest.mark.parametrize("target", ["/../../etc", "../../../etc", "/etc", "./../etc"])
def test_links_never_leave_the_root(target: str) -> None:
    """A link that climbs above the root ends at the root, as the kernel does below chroot."""
    tree = Tree()
    tree.put("out", Symlink(target=target))
    tree.put("out/passwd", File(content=b"x"))
    assert [path for path, node in walk(tree.root) if isinstance(node, File)] == ["etc/passwd"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "a/..", "a\0b", "a" * 256])
def test_bad_paths_are_refused(path: str) -> None:
    """A path that climbs, or cannot be a name, is an error and not a file elsewhere."""
    with pytest.raises(InvalidImagePath):
        Tree().put(path, File())


def test_an_absolute_path_is_below_the_root() -> None:
    """A leading slash means the image's root."""
    tree = Tree()
    tree.put("/etc/x", File())
    assert tree.get("etc/x") is not None


def test_a_circle_of_links_is_refused() -> None:
    """Links that name each other end in an error, not in a loop."""
    tree = Tree()
    tree.put("a", Symlink(target="b"))
    tree.put("b", Symlink(target="a"))
    with pytest.raises(InvalidImagePath, match="too many links"):
        tree.put("a/x", File())


def test_a_link_makes_no_name_that_no_file_can_have() -> None:
    """Directories on the way to a link's target are made, but not with a name that a file system refuses."""
    tree = Tree()
    tree.put("long", Symlink(target="t" * 256))
    with pytest.raises(InvalidImagePath, match="no file name"):
        tree.put("long/x", File())


def test_depth_is_bounded_even_through_links() -> None:
    """No detour over links makes a tree deeper than the walk over it can go."""
    tree = Tree()
    deep = "/".join("d" * (MAX_DEPTH - 2))
    tree.put(f"{deep}/f", File())
    tree.put("short", Symlink(target=deep))
    with pytest.raises(InvalidImagePath, match="deep"):
        tree.put("short/a/b/c/f", File())


def test_a_file_on_the_way_is_refused() -> None:
    """A path through a file is an error."""
    tree = Tree()
    tree.put("a", File())
    with pytest.raises(InvalidImagePath, match="no directory"):
        tree.put("a/b", File())


def test_a_directory_again_keeps_its_files() -> None:
    """A later entry for a directory changes its owner and keeps what lies in it."""
    tree = Tree()
    tree.put("a/b", File())
    tree.put("a", Directory(mode=0o700, uid=5))
    node = tree.get("a")
    assert isinstance(node, Directory)
    assert (node.mode, node.uid, list(node.children)) == (0o700, 5, ["b"])


def test_prune_removes_by_path() -> None:
    """Pruning takes away whole directories and leaves the rest."""
    tree = Tree()
    for path in ("usr/share/doc/a", "usr/bin/a"):
        tree.put(path, File())
    prune(tree.root, lambda path: path.startswith("usr/share"))
    assert [path for path, _ in walk(tree.root)] == ["usr", "usr/bin", "usr/bin/a"]
