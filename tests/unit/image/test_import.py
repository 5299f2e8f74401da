"""Importing container images: every format, every rule of layers, the same bytes each time."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cellmesh.image import ContainerImage, CredentialInImage, ImageStore
from support import erofs, oci

SETTINGS = {
    "Entrypoint": ["/bin/app"],
    "Cmd": ["--serve"],
    "Env": ["PATH=/bin", "EMPTY="],
    "WorkingDir": "/srv",
    "User": "1000:1000",
    "ExposedPorts": {"8080/tcp": {}},
}


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """Give an empty store."""
    return ImageStore(tmp_path / "images")


@pytest.fixture
def flatten(store: ImageStore, tmp_path: Path) -> Callable[..., Path]:
    """Give a function that imports layers of entries and returns the unpacked root."""

    def flattened(*layers: list[oci.Entry]) -> Path:
        digest = store.import_container(oci.layout(tmp_path / "layout", [oci.tar(layer) for layer in layers]))
        return erofs.extract(store.container(digest).rootfs, tmp_path / "out") / "rootfs"

    return flattened


def as_is(layout: Path) -> Path:
    """Leave the layout a directory."""
    return layout


def as_tar(layout: Path) -> Path:
    """Pack the layout into a gzipped tar."""
    return oci.pack_layout(layout, layout.with_suffix(".tar.gz"))


def unpack_tar(layout: Path) -> Path:
    """Pack the layout into a plain tar."""
    plain = layout.with_suffix(".tar")
    plain.write_bytes(gzip.decompress(as_tar(layout).read_bytes()))
    return plain


@pytest.mark.parametrize("packed", [as_is, as_tar, unpack_tar])
def test_an_oci_layout_in_each_wrapping(store: ImageStore, tmp_path: Path, packed: Callable[[Path], Path]) -> None:
    """Directory, tar and gzipped tar give the same image, with its settings inside and out."""
    layer = oci.tar([oci.directory("bin"), oci.entry("bin/app", b"#!", mode=0o755)])
    plain = store.import_container(oci.layout(tmp_path / "plain", [layer], SETTINGS))
    digest = store.import_container(packed(oci.layout(tmp_path / "layout", [layer], SETTINGS)))
    assert digest == plain
    image = store.container(digest)
    assert image.config.entrypoint == ("/bin/app",)
    assert image.config.cmd == ("--serve",)
    assert image.config.user == "1000:1000"
    assert image.config.exposed_ports == ("8080/tcp",)
    out = erofs.extract(image.rootfs, tmp_path / "out")
    assert (out / "rootfs/bin/app").read_bytes() == b"#!"
    inside = json.loads((out / ".cellmesh/config.json").read_text())
    assert inside["working_dir"] == "/srv"
    assert inside["env"] == ["PATH=/bin", "EMPTY="]
    assert store.verify(digest) == []


def test_a_docker_archive(store: ImageStore, tmp_path: Path) -> None:
    """What `docker save` wrote before it wrote OCI layouts can be imported too."""
    layers = [oci.tar([oci.entry("a", b"1")]), oci.tar([oci.entry("b", b"2")])]
    image = store.container(store.import_container(oci.docker_archive(tmp_path / "saved.tar", layers, SETTINGS)))
    assert (image.source.format, image.source.reference) == ("docker-archive", "app:1")
    out = erofs.extract(image.rootfs, tmp_path / "out")
    assert {path.name for path in (out / "rootfs").iterdir()} == {"a", "b"}


@pytest.mark.parametrize("program", ["gzip", "zstd"])
def test_compressed_layers(store: ImageStore, tmp_path: Path, program: str) -> None:
    """Layers packed with gzip or zstd unpack to what their hash says, in a directory and inside a tar."""
    plain = oci.tar([oci.entry("a", b"1" * 100_000)])
    packed = subprocess.run([program, "-c"], input=plain, check=True, capture_output=True).stdout
    layout = oci.layout(tmp_path / "layout", [packed], diff_ids=[oci.digest(plain)])
    image = store.container(store.import_container(layout))
    assert (erofs.extract(image.rootfs, tmp_path / "out") / "rootfs/a").read_bytes() == b"1" * 100_000
    assert store.import_container(unpack_tar(layout)) == image.digest


def test_importing_twice_is_one_image(store: ImageStore, tmp_path: Path) -> None:
    """The same archive gives the same digest, wherever and whenever it is imported."""
    layer = oci.tar([oci.entry("a", b"1", mtime=5), oci.link("b", "a")])
    digests = set()
    for number in range(2):
        other = ImageStore(tmp_path / f"store-{number}")
        digests.add(other.import_container(oci.layout(tmp_path / f"layout-{number}", [layer])))
    assert len(digests) == 1


def test_a_whiteout_hides_a_lower_file(flatten: Callable[..., Path]) -> None:
    """`.wh.name` removes the file below and is itself never seen."""
    root = flatten([oci.entry("d/keep"), oci.entry("d/gone")], [oci.entry("d/.wh.gone")])
    assert [path.name for path in (root / "d").iterdir()] == ["keep"]


def test_an_opaque_directory_hides_all_below_but_not_its_own(flatten: Callable[..., Path]) -> None:
    """The opaque mark empties a directory of lower layers, even if it comes after its own layer's files."""
    root = flatten([oci.entry("d/old")], [oci.entry("d/new"), oci.entry("d/.wh..wh..opq")])
    assert [path.name for path in (root / "d").iterdir()] == ["new"]


def test_a_whiteout_spares_its_own_layer(flatten: Callable[..., Path]) -> None:
    """A file a layer both hides and brings is there, as the layer brought it."""
    root = flatten([oci.entry("x", b"old")], [oci.entry("x", b"new"), oci.entry(".wh.x")])
    assert (root / "x").read_bytes() == b"new"


def test_a_link_over_a_directory_and_back(flatten: Callable[..., Path]) -> None:
    """An upper layer may put a link where a directory was, or a directory where a link was."""
    root = flatten([oci.entry("a/x"), oci.link("b", "a")], [oci.link("a", "c"), oci.directory("b"), oci.entry("b/y")])
    assert str((root / "a").readlink()) == "c"
    assert [path.name for path in (root / "b").iterdir()] == ["y"]


def test_hard_links_are_one_file(store: ImageStore, tmp_path: Path) -> None:
    """A hard link shares the file, also with a lower layer; replacing one name leaves the other."""
    layers = [[oci.entry("a", b"1"), oci.hard_link("b", "a")], [oci.hard_link("c", "/a"), oci.entry("a", b"2")]]
    layout = oci.layout(tmp_path / "layout", [oci.tar(layer) for layer in layers])
    image = store.container(store.import_container(layout))
    assert erofs.stat(image.rootfs, "/rootfs/b")["links"] == 2
    out = erofs.extract(image.rootfs, tmp_path / "out") / "rootfs"
    assert [(out / name).read_bytes() for name in "abc"] == [b"2", b"1", b"1"]


def test_owners_are_kept_and_devices_dropped(store: ImageStore, tmp_path: Path) -> None:
    """Owner and mode are the layer's; device nodes, FIFOs and file capabilities are not taken over."""
    capability = {"SCHILY.xattr.security.capability": "\x01\x00\x00\x02"}
    entries = [
        oci.entry("mine", b"x", uid=70_000, gid=33, mode=0o4750, pax_headers=capability),
        oci.entry("sda", type=b"4"),
        oci.entry("tty", type=b"3"),
        oci.entry("fifo", type=b"6"),
    ]
    image = store.container(store.import_container(oci.layout(tmp_path / "layout", [oci.tar(entries)])))
    assert erofs.stat(image.rootfs, "/rootfs/mine") == {"uid": 70_000, "gid": 33, "mode": 0o4750, "links": 1}
    out = erofs.extract(image.rootfs, tmp_path / "out") / "rootfs"
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_modification_times_are_kept(flatten: Callable[..., Path]) -> None:
    """A file's time is the layer's, so that bytecode in an image stays valid for its source."""
    root = flatten([oci.entry("a", b"1", mtime=1_234_567_890)])
    assert root.joinpath("a").stat().st_mtime == 1_234_567_890


def test_the_image_for_this_platform_is_chosen(store: ImageStore, tmp_path: Path) -> None:
    """Of an index for several platforms linux/amd64 is taken; attestations do not count."""
    layout = oci.layout(tmp_path / "layout", [oci.tar([oci.entry("a", b"1")])])
    descriptor = json.loads((layout / "index.json").read_text())["manifests"][0]
    platforms = [("linux", "amd64"), ("linux", "arm64"), ("unknown", "unknown")]
    entries = [{**descriptor, "platform": {"os": os, "architecture": cpu}} for os, cpu in platforms]
    oci.write_index(layout, entries)
    assert isinstance(store.get(store.import_container(layout)), ContainerImage)


@pytest.mark.parametrize(
    "settings",
    [
        {"Env": ["OPENAI_API_KEY=abc"]},
        {"Env": ["anthropic_api_key=abc"]},
        {"Env": ["AWS_SECRET_ACCESS_KEY=abc"]},
        {"Env": ["HARMLESS=sk-abcdefghijklmnopqrst"]},
        {"Env": ["HARMLESS=AKIAABCDEFGHIJKLMNOP"]},
        {"Cmd": ["--key=sk-abcdefghijklmnopqrst"]},
    ],
)
def test_an_image_with_a_key_is_refused(store: ImageStore, tmp_path: Path, settings: dict[str, list[str]]) -> None:
    """A provider's key in the settings keeps an image out, and the error does not repeat the key."""
    layout = oci.layout(tmp_path / "layout", [oci.tar([])], settings)
    with pytest.raises(CredentialInImage) as caught:
        store.import_container(layout)
    assert "sk-" not in str(caught.value)
    assert "AKIA" not in str(caught.value)
    assert list(store.root.iterdir()) == []


def test_an_empty_key_and_a_public_key_pass(store: ImageStore, tmp_path: Path) -> None:
    """A name without a value, or a key that is no provider's, is no reason to refuse."""
    settings = {"Env": ["OPENAI_API_KEY=", "GPG_KEY=7169605F62C751356D054A26A821E680E5FA6305"]}
    assert store.import_container(oci.layout(tmp_path / "layout", [oci.tar([])], settings))
