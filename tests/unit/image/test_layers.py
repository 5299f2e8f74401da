"""Layers on top of each other: the outcome is that of an overlay file system, compared with a second merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmesh.image import layers as product
from cellmesh.image.layers import apply_layer
from cellmesh.image.tree import Directory, Dropped, Symlink, Tree, read, walk
from support import layers, oci
from support.layers import Operation, Paths

NAMES = st.sampled_from("abc")
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
OPERATIONS = st.builds(
    Operation,
    kind=st.sampled_from(["file", "directory", "link", "fifo", "whiteout", "opaque"]),
    path=PATHS,
    text=st.sampled_from(["a", "/b", "c/a", "../b"]),
)
LAYERS = st.lists(st.lists(OPERATIONS, max_size=5).filter(layers.is_sound), min_size=1, max_size=4)
Flatten = Callable[..., Tree]


def flatten_in(folder: Path, *archives: bytes) -> Tree:
    """Return the tree of layers that are uncompressed tar archives."""
    tree = Tree()
    for number, archive in enumerate(archives):
        path = folder / f"layer-{number}"
        path.write_bytes(archive)
        apply_layer(tree, path, f"layer {number}")
    return tree


@pytest.fixture
def flatten(tmp_path: Path) -> Flatten:
    """Give a function that returns the tree of layers of entries."""
    return lambda *entries: flatten_in(tmp_path, *(oci.tar(layer) for layer in entries))


def paths_of(tree: Tree) -> Paths:
    """Return kind and text of every path."""
    found: Paths = {}
    for path, node in walk(tree.root):
        if isinstance(node, Directory):
            found[path] = ("directory", "")
        elif isinstance(node, Symlink):
            found[path] = ("link", node.target)
        else:
            found[path] = ("file", read(node.content).decode())
    return found


@settings(max_examples=400, deadline=None)
@given(generated=LAYERS)
def test_any_layers_merge_as_the_second_merge_says(
    tmp_path_factory: pytest.TempPathFactory, generated: list[list[Operation]]
) -> None:
    """Files, directories, links, FIFOs, whiteouts and opaque marks in any order give what overlayfs would show."""
    folder = tmp_path_factory.getbasetemp()
    archives = [oci.tar([operation.entry() for operation in layer]) for layer in generated]
    assert paths_of(flatten_in(folder, *archives)) == layers.merged(generated)


@pytest.mark.parametrize(
    "upper",
    [
        [oci.directory("x"), oci.entry("x/.wh..wh..opq"), oci.entry("x/in")],
        [oci.directory("x"), oci.entry("x/.wh.gone"), oci.entry("x/in")],
        [oci.entry("x/in")],
        [oci.entry("x/in"), oci.directory("x")],
    ],
)
@pytest.mark.parametrize(
    "lower", [oci.entry("x", b"file"), oci.link("x", "/kept"), oci.link("x", "nowhere"), oci.entry("x", type=b"6")]
)
def test_an_upper_directory_replaces_what_is_below(flatten: Flatten, lower: oci.Entry, upper: list[oci.Entry]) -> None:
    """A file, a link or a FIFO gives way to a directory, marked or not; a link's target stays as it was."""
    found = paths_of(flatten([oci.directory("kept"), oci.entry("kept/in", b"1"), lower], upper))
    assert found["x"] == ("directory", "")
    assert found["x/in"] == ("file", "")
    assert found["kept/in"] == ("file", "1")
    assert "kept/gone" not in found


def test_a_whiteout_never_reaches_the_target_of_a_lower_link(flatten: Flatten) -> None:
    """`link/.wh.name` hides in the upper directory `link`, and nothing in the directory that the lower link names."""
    found = paths_of(flatten([oci.entry("t/keep", b"1"), oci.link("l", "t")], [oci.entry("l/.wh.keep")]))
    assert found["t/keep"] == ("file", "1")
    assert found["l"] == ("directory", "")


def test_a_path_through_a_link_of_the_same_layer_follows_it(flatten: Flatten) -> None:
    """Inside one layer a link leads on, as it does for every tool that unpacks the layer."""
    found = paths_of(flatten([oci.entry("old")], [oci.link("lib", "usr/lib"), oci.entry("lib/x", b"1")]))
    assert found["usr/lib/x"] == ("file", "1")


@pytest.mark.parametrize("kind", [b"3", b"4", b"6"])
def test_what_is_dropped_still_hides(flatten: Flatten, kind: bytes) -> None:
    """A device or FIFO is not kept, but neither is the file or the directory of the lower layer at its place."""
    upper = [oci.entry("file", type=kind), oci.entry("folder", type=kind)]
    assert paths_of(flatten([oci.entry("file", b"1"), oci.entry("folder/in", b"1"), oci.entry("other")], upper)) == {
        "other": ("file", "")
    }


@pytest.mark.parametrize("kind", [b"3", b"4", b"6"])
def test_a_hard_link_to_what_is_dropped_is_dropped(flatten: Flatten, kind: bytes) -> None:
    """The second name of a device hides like the first, and refuses nothing."""
    upper = [oci.entry("one", type=kind), oci.hard_link("two", "one"), oci.hard_link("three", "two")]
    assert paths_of(flatten([oci.entry("two", b"1"), oci.entry("three", b"1")], upper)) == {}


def test_a_hard_link_to_a_link_is_the_same_link(flatten: Flatten) -> None:
    """Two names of one symbolic link are one node, whatever the link names."""
    tree = flatten([oci.link("one", "nowhere"), oci.hard_link("two", "one")])
    assert isinstance(tree.get("two"), Symlink)
    assert tree.get("one") is tree.get("two")


def test_a_directory_without_an_entry_keeps_the_lower_ones_owner(flatten: Flatten) -> None:
    """A layer that only has a file inside says nothing of the directory; one with an entry says all of it."""
    lower = [oci.entry("d", type=b"5", mode=0o1777, uid=5)]
    implied = flatten(lower, [oci.entry("d/x")]).get("d")
    stated = flatten(lower, [oci.entry("d", type=b"5", mode=0o700)]).get("d")
    assert isinstance(implied, Directory)
    assert isinstance(stated, Directory)
    assert (implied.mode, implied.uid) == (0o1777, 5)
    assert (stated.mode, stated.uid) == (0o700, 0)


@pytest.mark.parametrize("broken", ["hidden", "opaque", "dropped"])
def test_the_second_merge_finds_defects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Control: a merge that forgets one of its rules differs from the second merge on a layer that uses the rule."""
    real = product.merge

    def forgetful(lower: Directory, upper: Directory) -> None:
        for node in (upper, *(node for _, node in walk(upper) if isinstance(node, Directory))):
            if broken == "hidden":
                node.hidden.clear()
            elif broken == "opaque":
                node.opaque = False
            else:
                node.children = {n: child for n, child in node.children.items() if not isinstance(child, Dropped)}
        real(lower, upper)

    lower = [Operation(kind="file", path="a/b"), Operation(kind="file", path="a/c"), Operation(kind="file", path="b")]
    upper = [
        Operation(kind="whiteout", path="b"),
        Operation(kind="opaque", path="a") if broken == "opaque" else Operation(kind="fifo", path="a/b"),
    ]
    archives = [oci.tar([operation.entry() for operation in layer]) for layer in (lower, upper)]
    assert paths_of(flatten_in(tmp_path, *archives)) == layers.merged([lower, upper])
    monkeypatch.setattr(product, "merge", forgetful)
    assert paths_of(flatten_in(tmp_path, *archives)) != layers.merged([lower, upper])
