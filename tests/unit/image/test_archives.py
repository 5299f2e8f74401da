"""Which image of an archive is imported, and in which wrappings an archive may come."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cellmesh.image import AmbiguousImage, ArchiveInvalid, ContainerImage, ImageStore
from support import erofs, oci

NAME = "org.opencontainers.image.ref.name"
LONG_NAME = "io.containerd.image.name"
INDEX = "application/vnd.oci.image.index.v1+json"
AMD64 = {"os": "linux", "architecture": "amd64"}
Descriptor = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """Give an empty store."""
    return ImageStore(tmp_path / "images")


class Layout:
    """An OCI layout in the making: images, each with one file that is called as the image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blobs = path / "blobs/sha256"

    def image(self, name: str, **attributes: object) -> Descriptor:
        """Add an image and return its descriptor with `attributes`."""
        other = oci.layout(self.path.with_name(f"{self.path.name}-{name}"), [oci.tar([oci.entry(name)])])
        self.blobs.mkdir(parents=True, exist_ok=True)
        for blob in (other / "blobs/sha256").iterdir():
            blob.rename(self.blobs / blob.name)
        (found,) = json.loads((other / "index.json").read_text())["manifests"]
        (self.path / "oci-layout").write_bytes((other / "oci-layout").read_bytes())
        return {**found, **attributes}

    def document(self, value: object, media_type: str, **attributes: object) -> Descriptor:
        """Add a JSON document and return its descriptor with `attributes`."""
        return {**oci.keep_blob(self.blobs, json.dumps(value).encode(), media_type), **attributes}

    def write(self, *entries: Descriptor) -> Path:
        """Write the index and return the layout's path."""
        oci.write_index(self.path, entries)
        return self.path


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Give an empty layout."""
    return Layout(tmp_path / "layout")


def called(name: str, key: str = NAME) -> dict[str, object]:
    """Return the attribute that gives a descriptor its name."""
    return {"annotations": {key: name}}


def contents(store: ImageStore, digest: str, tmp_path: Path) -> set[str]:
    """Return the names in an image's root."""
    out = erofs.extract(store.container(digest).rootfs, tmp_path / f"out-{digest[-12:]}")
    return {path.name for path in (out / "rootfs").iterdir()}


def test_one_manifest_under_several_names_is_one_image(store: ImageStore, tmp_path: Path, layout: Layout) -> None:
    """Tags of the same digest need no choice, at the top and inside a nested index."""
    image = layout.image("one")
    nested = layout.document({"manifests": [image]}, INDEX, **called("three"))
    path = layout.write({**image, **called("latest")}, {**image, **called("1.0")}, image, nested)
    assert contents(store, store.import_container(path), tmp_path) == {"one"}


@pytest.mark.parametrize("kind", ["descriptor", "manifest", "config", "layers"])
def test_an_artifact_beside_the_image_is_none(store: ImageStore, tmp_path: Path, layout: Layout, kind: str) -> None:
    """Signatures and bills of materials say what they are in their descriptor, manifest, configuration or layers."""
    image = layout.image("one", **called("app"))
    config = layout.document({}, "application/vnd.oci.image.config.v1+json")
    manifest: dict[str, object] = {"schemaVersion": 2, "config": config, "layers": []}
    attributes = called("sha256-0.sig")
    if kind == "descriptor":
        attributes["artifactType"] = "application/vnd.example"
    elif kind == "manifest":
        manifest["artifactType"] = "application/vnd.example"
    elif kind == "config":
        manifest["config"] = {**config, "mediaType": "application/vnd.oci.empty.v1+json"}
    else:
        manifest["layers"] = [{**config, "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json"}]
    artifact = layout.document(manifest, oci.MANIFEST, **attributes)
    assert contents(store, store.import_container(layout.write(artifact, image)), tmp_path) == {"one"}


def test_the_plainest_variant_is_taken(store: ImageStore, tmp_path: Path, layout: Layout) -> None:
    """Of several variants of amd64 the one that runs everywhere is imported, in whichever order they stand."""
    variants = [layout.image(name, platform={**AMD64, "variant": name}) for name in ("v3", "v1", "v2")]
    plain = layout.image("plain", platform=AMD64)
    assert contents(store, store.import_container(layout.write(*variants)), tmp_path) == {"v1"}
    assert contents(store, store.import_container(layout.write(*variants, plain)), tmp_path) == {"plain"}


@pytest.mark.parametrize("key", [NAME, LONG_NAME])
def test_one_of_several_images_is_chosen_by_name(store: ImageStore, tmp_path: Path, layout: Layout, key: str) -> None:
    """Without a name the error lists them; with a name or a digest that image is imported, and its name is kept."""
    entries = [layout.image(name, **called(f"{name}:1", key)) for name in ("one", "two")]
    path = layout.write(*entries)
    with pytest.raises(AmbiguousImage, match="one:1, two:1") as caught:
        store.import_container(path)
    assert caught.value.names == ("one:1", "two:1")
    with pytest.raises(AmbiguousImage, match="none called 'three'"):
        store.import_container(path, reference="three")
    digest = store.import_container(path, reference="two:1")
    assert contents(store, digest, tmp_path) == {"two"}
    assert store.container(digest).source.reference == "two:1"
    assert store.import_container(path, reference=entries[1]["digest"]) == digest


def test_one_of_several_saved_images_is_chosen_by_name(store: ImageStore, tmp_path: Path) -> None:
    """An archive of `docker save` with two images behaves like a layout with two."""
    parts: dict[str, bytes] = {}
    entries = []
    for name in ("one", "two"):
        layer = oci.tar([oci.entry(name)])
        config = json.dumps({"config": {}, "rootfs": {"diff_ids": [oci.digest(layer)]}}).encode()
        path = f"{oci.digest(config).removeprefix('sha256:')}.json"
        parts |= {f"{name}.tar": layer, path: config}
        entries.append({"Config": path, "RepoTags": [f"{name}:1"], "Layers": [f"{name}.tar"]})
    again = [*entries, {**entries[0], "RepoTags": ["again:1"]}]
    parts["manifest.json"] = json.dumps(again).encode()
    (tmp_path / "saved.tar").write_bytes(oci.tar([oci.entry(name, data) for name, data in parts.items()]))
    with pytest.raises(AmbiguousImage, match="again:1, one:1, two:1"):
        store.import_container(tmp_path / "saved.tar")
    digest = store.import_container(tmp_path / "saved.tar", reference="again:1")
    assert contents(store, digest, tmp_path) == {"one"}


def test_another_platform_is_named(store: ImageStore, tmp_path: Path) -> None:
    """An index need not say a platform; the configuration does."""
    layout = oci.layout(tmp_path / "layout", [oci.tar([])])
    config = next(path for path in (layout / "blobs/sha256").iterdir() if b'"os"' in path.read_bytes())
    changed = config.read_bytes().replace(b"amd64", b"arm64")
    name = oci.digest(changed)
    (config.parent / name.removeprefix("sha256:")).write_bytes(changed)
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads((config.parent / entry["digest"].removeprefix("sha256:")).read_text())
    manifest["config"]["digest"] = name
    kept = oci.keep_blob(config.parent, json.dumps(manifest).encode(), oci.MANIFEST)
    oci.write_index(layout, [kept])
    with pytest.raises(ArchiveInvalid, match="linux/arm64"):
        store.import_container(layout)


def packed_layout(tmp_path: Path) -> bytes:
    """Return a layout as a plain tar."""
    layout = oci.layout(tmp_path / "layout", [oci.tar([oci.entry("one")])])
    return gzip.decompress(oci.pack_layout(layout, tmp_path / "layout.tar.gz").read_bytes())


@pytest.mark.parametrize("pack", [lzma.compress, bz2.compress])
def test_archives_and_layers_packed_with_xz_and_bzip2(
    store: ImageStore, tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    """Both are unpacked, around the archive and inside it."""
    (tmp_path / "app.tar.x").write_bytes(pack(packed_layout(tmp_path)))
    assert contents(store, store.import_container(tmp_path / "app.tar.x"), tmp_path) == {"one"}
    layer = oci.tar([oci.entry("two")])
    layout = oci.layout(tmp_path / "packed", [pack(layer)], diff_ids=[oci.digest(layer)])
    assert contents(store, store.import_container(layout), tmp_path) == {"two"}


def test_an_archive_from_a_pipe(store: ImageStore, tmp_path: Path) -> None:
    """A named pipe, and any path that leads to one, is read to its end; nothing of it stays."""
    data = packed_layout(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    digest = store.import_container(pipe)
    writer.join()
    assert [path.name for path in store.root.iterdir()] == [digest.removeprefix("sha256:")]
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        writer = threading.Thread(target=lambda: (cat.stdin.write(data), cat.stdin.close()))
        writer.start()
        assert store.import_container(Path(f"/proc/self/fd/{cat.stdout.fileno()}")) == digest
        writer.join()


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["bin/", "etc/passwd", "usr/bin/x"], "root file system"),
        (["rootfs/bin/x", "config.json"], "umoci repack"),
        (["repositories", "0/layer.tar"], "docker save"),
        (["overlay-images/", "overlay/"], "podman save"),
        (["readme"], "skopeo copy"),
    ],
)
def test_what_is_no_image_is_named_with_the_way_to_make_one(
    store: ImageStore, tmp_path: Path, names: list[str], what: str
) -> None:
    """A tar or a directory of something else is refused by what it is."""
    entries = [oci.directory(name) if name.endswith("/") else oci.entry(name) for name in names]
    (tmp_path / "x.tar").write_bytes(oci.tar(entries))
    with pytest.raises(ArchiveInvalid, match=what):
        store.import_container(tmp_path / "x.tar")
    subprocess.run(["tar", "-C", tmp_path, "--one-top-level=folder", "-xf", tmp_path / "x.tar"], check=True)
    with pytest.raises(ArchiveInvalid, match=what):
        store.import_container(tmp_path / "folder")


def test_a_layer_that_is_no_tar_is_named(store: ImageStore, layout: Layout) -> None:
    """An encrypted layer, or one of another kind, is refused by its type."""
    image = layout.image("one")
    manifest = json.loads((layout.blobs / image["digest"].removeprefix("sha256:")).read_text())
    manifest["layers"][0]["mediaType"] += "+encrypted"
    path = layout.write(layout.document(manifest, oci.MANIFEST))
    with pytest.raises(ArchiveInvalid, match="encrypted"):
        store.import_container(path)


def test_a_manifest_of_docker_schema_1_is_named(store: ImageStore, tmp_path: Path) -> None:
    """What skopeo's `dir:` keeps of very old registries has no configuration; the error says how to convert it."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/manifest.json").write_text('{"schemaVersion": 1, "fsLayers": []}')
    with pytest.raises(ArchiveInvalid, match="skopeo copy --format oci"):
        store.import_container(tmp_path / "dir")


@pytest.mark.parametrize("form", ["gnu", "pax0.0", "pax0.1", "pax1.0"])
def test_sparse_files_of_gnu_tar(store: ImageStore, tmp_path: Path, form: str) -> None:
    """Each way in which GNU tar writes a sparse file is read back byte for byte: many stretches, holes at both ends."""
    content = bytearray(3 << 20)
    for number in range(30):
        content[50_000 + number * 90_000 : 50_009 + number * 90_000] = b"stretch%02d" % number
    holes = tmp_path / "source/holes"
    holes.parent.mkdir()
    holes.write_bytes(content)
    subprocess.run(["fallocate", "--dig-holes", holes], check=True)
    options = ["--format=gnu"] if form == "gnu" else ["--format=pax", f"--sparse-version={form[3:]}"]
    layer = subprocess.run(
        ["tar", "-C", holes.parent, "--sparse", *options, "-cf", "-", "holes"], check=True, capture_output=True
    ).stdout
    assert len(layer) < len(content) / 2
    image = store.get(store.import_container(oci.layout(tmp_path / "layout", [layer])))
    assert isinstance(image, ContainerImage)
    assert (erofs.extract(image.rootfs, tmp_path / "out") / "rootfs/holes").read_bytes() == content
    assert image.rootfs.stat().st_blocks * 512 < len(content) / 2
