"""The EROFS writer, judged by erofs-utils, which reads what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellmesh.image import ImageError
from cellmesh.image.erofs import write_erofs
from cellmesh.image.tree import Directory, Extent, File, Symlink, Tree
from support import erofs

EPOCH = 1_700_000_000


def write(tree: Tree, target: Path) -> Path:
    """Write `tree` with fixed identity."""
    target.unlink(missing_ok=True)
    write_erofs(tree.root, target, uuid=bytes(range(16)), timestamp=EPOCH)
    return target


@pytest.mark.parametrize("size", [0, 1, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 100_000])
def test_files_of_every_awkward_size_come_back(tmp_path: Path, size: int) -> None:
    """Content survives on both sides of each boundary: of the slot, of the block, of the tail."""
    tree = Tree()
    content = bytes(number % 251 for number in range(size))
    tree.put("a/file", File(content=content))
    tree.put("a/next", File(content=b"next"))
    out = erofs.extract(write(tree, tmp_path / "image"), tmp_path / "out")
    assert (out / "a/file").read_bytes() == content
    assert (out / "a/next").read_bytes() == b"next"


def test_large_directories_and_odd_names(tmp_path: Path) -> None:
    """A directory of several blocks is complete, with names that sort before '.' and beyond ASCII."""
    names = [*(f"entry-{number:04}" for number in range(1500)), "!first", "-dash", "émile", "x" * 255]
    tree = Tree()
    for name in names:
        tree.put(f"big/{name}", File(content=name.encode()))
    out = erofs.extract(write(tree, tmp_path / "image"), tmp_path / "out")
    assert sorted(path.name for path in (out / "big").iterdir()) == sorted(names)
    assert (out / "big" / "émile").read_text() == "émile"


def test_owners_modes_links_and_targets(tmp_path: Path) -> None:
    """Owner beyond 16 bits, setuid, hard links and long link targets are kept."""
    tree = Tree()
    shared = File(content=b"one", mode=0o4755, uid=70_000, gid=5)
    tree.put("first", shared)
    tree.put("second", shared)
    tree.put("link", Symlink(target="t" * 4090))
    tree.put("sticky", Directory(mode=0o1777))
    image = write(tree, tmp_path / "image")
    assert erofs.stat(image, "/first") == {"uid": 70_000, "gid": 5, "mode": 0o4755, "links": 2}
    assert erofs.stat(image, "/sticky")["mode"] == 0o1777
    out = erofs.extract(image, tmp_path / "out")
    assert str((out / "link").readlink()) == "t" * 4090
    assert (out / "second").read_bytes() == b"one"


def test_the_same_tree_is_the_same_bytes(tmp_path: Path) -> None:
    """The order in which a tree was filled does not show in the image."""
    paths = ["b", "a/c", "a/b/d", "z"]
    images = []
    for number, order in enumerate((paths, paths[::-1])):
        tree = Tree()
        for path in order:
            tree.put(path, File(content=path.encode()))
        images.append(write(tree, tmp_path / f"image-{number}").read_bytes())
    assert images[0] == images[1]


def test_a_file_that_shrinks_meanwhile_is_an_error(tmp_path: Path) -> None:
    """Content that is no longer there ends the write, instead of a hole in the image."""
    source = tmp_path / "source"
    source.write_bytes(b"short")
    tree = Tree()
    tree.put("x", File(content=Extent(path=source, offset=0, size=5000)))
    with pytest.raises(ImageError, match="shorter"):
        write(tree, tmp_path / "image")


NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=20)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(NAMES.filter(lambda name: name not in {".", ".."}), st.binary(max_size=9000), max_size=12))
def test_any_files_come_back(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    """Whatever the names and contents, what is read is what was put in."""
    base = tmp_path_factory.mktemp("erofs")
    tree = Tree()
    for name, content in files.items():
        tree.root.children[name] = File(content=content)
    out = erofs.extract(write(tree, base / "image"), base / "out")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
