"""Images made by buildah, skopeo, umoci and GNU tar: the import gives the tree that those tools show themselves."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellmesh.image import AmbiguousImage, ImageStore
from support import erofs, oci
from support.image_tools import ImageTools, Seen, random_stage, remove, seen


@pytest.fixture(params=["overlay", "vfs"])
def tools(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ImageTools]:
    """Give the tools with storage of their own; their containers and mounts are gone afterwards.

    The driver `overlay` writes what the kernel's overlay has, with opaque marks; `vfs` compares two trees. It needs a
    file system that may lie above another, which the machine's own need not be.
    """
    folder = tmp_path / "tools"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", folder], check=True)
    try:
        tools = ImageTools(folder, request.param)
        yield tools
        tools.run("buildah", "rm", "--all")
        tools.run("buildah", "rmi", "--all", "--force")
    finally:
        subprocess.run(["umount", "--recursive", folder], check=True)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """Give an empty store."""
    return ImageStore(tmp_path / "images")


def imported(store: ImageStore, path: Path, reference: str = "") -> Seen:
    """Import an archive and return what lies in its root."""
    image = store.container(store.import_container(path, reference=reference))
    return seen(erofs.extract(image.rootfs, store.root.with_name(f"out-{image.digest[-12:]}")) / "rootfs")


def base_stage(root: Path) -> None:
    """Make a root with everything that a later layer replaces."""
    for name in ("usr/lib", "kept", "emptied", "becomes-file", "deep"):
        (root / name).mkdir(parents=True)
        (root / name / "in").write_text(name)
    for name in ("becomes-directory", "gone", "first"):
        (root / name).write_text(name)
    (root / "lib").symlink_to("usr/lib")
    (root / "link").symlink_to("/kept")
    (root / "link-to-be-file").symlink_to("/kept/in")
    os.link(root / "lib", root / "second-lib", follow_symlinks=False)
    os.link(root / "first", root / "second")
    os.mkfifo(root / "fifo")
    os.link(root / "fifo", root / "second-fifo")
    os.mknod(root / "device", 0o600 | 0o020000, os.makedev(1, 3))
    os.link(root / "device", root / "second-device")
    os.chown(root / "kept", 1000, 33)


def changing_stage(root: Path) -> None:
    """Replace each kind by another."""
    remove(root / "becomes-file")
    (root / "becomes-file").write_text("file")
    remove(root / "becomes-directory")
    (root / "becomes-directory").mkdir()
    (root / "becomes-directory/in").write_text("in")
    remove(root / "link")
    (root / "link").mkdir()
    (root / "link/new").write_text("new")
    remove(root / "link-to-be-file")
    (root / "link-to-be-file").write_text("own")
    remove(root / "emptied")
    (root / "emptied").mkdir()
    (root / "emptied/fresh").write_text("fresh")
    remove(root / "gone")
    remove(root / "first")
    os.mkfifo(root / "first")
    (root / "usr/lib/late").write_text("late")


def test_buildah_replaces_each_kind_by_another(tools: ImageTools, store: ImageStore, tmp_path: Path) -> None:
    """A file, directory, link, FIFO or device over another kind: as buildah's and umoci's own roots show it."""
    settings = ("--stop-signal", "SIGQUIT", "--user", "1000:33", "--env", "A=1", "--workingdir", "/kept")
    root = tools.build(tmp_path / "layout", "app", base_stage, changing_stage, settings=settings)
    found = imported(store, tmp_path / "layout")
    assert found == seen(root)
    has_marks = any(b".wh..wh..opq" in blob.read_bytes() for blob in tmp_path.glob("layout/blobs/sha256/*"))
    assert has_marks == (tools.driver == "overlay")
    assert found == seen(tools.unpack(tmp_path / "layout", "app"))
    (image,) = store.list()
    config = store.container(image.digest).config
    assert (config.stop_signal, config.user, config.working_dir) == (3, "1000:33", "/kept")


@pytest.mark.parametrize("seed", range(4))
def test_any_history_of_buildah(tools: ImageTools, store: ImageStore, tmp_path: Path, seed: int) -> None:
    """Four layers of random changes give the root that buildah has."""
    root = tools.build(tmp_path / "layout", "app", *(random_stage(seed * 10 + number) for number in range(4)))
    assert imported(store, tmp_path / "layout") == seen(root)
    described = json.loads(tools.run("skopeo", "inspect", f"oci:{tmp_path}/layout:app"))
    assert len(described["Layers"]) == 4


def test_each_transport_of_skopeo(tools: ImageTools, store: ImageStore, tmp_path: Path) -> None:
    """One image as oci, dir, docker-archive and oci-archive, also compressed or from Docker's format, is one tree."""
    layout = tmp_path / "layout"
    root = tools.build(layout, "app", base_stage, changing_stage)
    targets = {
        "dir": f"dir:{tmp_path}/dir",
        "saved.tar": f"docker-archive:{tmp_path}/saved.tar:app:1",
        "app.tar": f"oci-archive:{tmp_path}/app.tar:app",
        "again": f"oci:{tmp_path}/again:app",
    }
    for name, target in targets.items():
        tools.copy(f"oci:{layout}:app", target)
        assert imported(ImageStore(tmp_path / f"store-{name}" / "images"), tmp_path / name) == seen(root), name
    tools.copy(f"docker-archive:{tmp_path}/saved.tar", f"dir:{tmp_path}/docker-dir")
    assert imported(store, tmp_path / "docker-dir") == seen(root)
    for program in ("xz", "bzip2", "gzip", "zstd"):
        packed = subprocess.run([program, "-c", tmp_path / "app.tar"], capture_output=True, check=True).stdout
        (tmp_path / f"app.tar.{program}").write_bytes(packed)
        other = ImageStore(tmp_path / f"store-{program}" / "images")
        assert imported(other, tmp_path / f"app.tar.{program}") == seen(root), program


def test_two_images_in_one_layout(tools: ImageTools, store: ImageStore, tmp_path: Path) -> None:
    """Tags of one image are one image; with a second image in the layout a name must be given."""
    layout = tmp_path / "layout"
    root = tools.build(layout, "app", base_stage)
    tools.copy(f"oci:{layout}:app", f"oci:{layout}:second-tag")
    assert imported(store, layout) == seen(root)
    other = tools.build(layout, "other", lambda root: (root / "only").mkdir())
    with pytest.raises(AmbiguousImage, match="app, other"):
        store.import_container(layout)
    assert imported(store, layout, "other") == seen(other)


def test_what_umoci_inserts(tools: ImageTools, store: ImageStore, tmp_path: Path) -> None:
    """Layers of umoci, whose archives have no end, with whiteouts and opaque marks: as umoci unpacks them."""
    layout = tmp_path / "layout"
    image = f"{layout}:app"
    source = tmp_path / "source"
    source.mkdir()
    base_stage(source)
    for name in ("device", "second-device", "fifo", "second-fifo"):
        (source / name).unlink()
    small = tmp_path / "small"
    small.mkdir()
    (small / "one").write_text("12345")
    tools.run("umoci", "init", "--layout", layout)
    tools.run("umoci", "new", "--image", image)
    tools.run("umoci", "insert", "--image", image, source, "/")
    tools.run("umoci", "insert", "--image", image, "--opaque", small, "/emptied")
    tools.run("umoci", "insert", "--image", image, "--whiteout", "/gone")
    tools.run("umoci", "insert", "--image", image, small / "one", "/usr/one")
    tools.run("umoci", "config", "--image", image, "--config.stopsignal", "SIGRTMIN+3")
    found = imported(store, layout)
    assert found == seen(tools.unpack(layout, "app"))
    assert "gone" not in found
    assert "emptied/in" not in found
    (stored,) = store.list()
    assert store.container(stored.digest).config.stop_signal == 37


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_each_format_of_gnu_tar(store: ImageStore, tmp_path: Path, form: str) -> None:
    """A layer in any format that GNU tar writes, with names as long as the format takes, is the packed tree."""
    root = tmp_path / "root"
    root.mkdir()
    base_stage(root)
    if form == "v7":  # which has no devices
        for name in ("device", "second-device", "fifo", "second-fifo"):
            (root / name).unlink()
    long = root / "d" / ("n" * (60 if form in {"v7", "ustar"} else 200))
    long.parent.mkdir()
    long.write_text("long")
    if form in {"gnu", "oldgnu", "posix"}:
        (root / "far").symlink_to("t" * 300)
        deep = root.joinpath(*["deep"] * 300)
        deep.mkdir(parents=True)
        (deep / "ü").write_text("deep")
    subprocess.run(["tar", "-C", root, f"--format={form}", "-cf", tmp_path / "layer.tar", "."], check=True)
    layout = oci.layout(tmp_path / "layout", [(tmp_path / "layer.tar").read_bytes()])
    assert imported(store, layout) == seen(root)
