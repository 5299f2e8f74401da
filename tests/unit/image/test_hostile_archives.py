"""Archives that lie, climb, swell or make no sense: a typed error each time, and nothing on the host."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellmesh.image import ArchiveInvalid, ImageError, ImageStore, InvalidImagePath, packing
from cellmesh.image.layers import apply_layer
from cellmesh.image.limits import MAX_DEPTH
from cellmesh.image.tree import File, Tree, walk
from support import erofs, oci


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """Give an empty store."""
    return ImageStore(tmp_path / "images")


def import_entries(store: ImageStore, tmp_path: Path, entries: list[oci.Entry]) -> str:
    """Import an image of one layer."""
    return store.import_container(oci.layout(tmp_path / "layout", [oci.tar(entries)]))


@pytest.mark.parametrize(
    "entries",
    [
        [oci.entry("../escaped", b"x")],
        [oci.entry("a/../../escaped", b"x")],
        [oci.hard_link("a", "../../../../etc/passwd")],
        [oci.entry("a/../.wh.b")],
        [oci.entry(".wh...")],
        [oci.hard_link("a", "missing")],
        [oci.directory("d"), oci.hard_link("a", "d")],
        [oci.link("l", "l2"), oci.link("l2", "l"), oci.entry("l/x", b"")],
        [oci.entry("file", b""), oci.entry("file/below", b"")],
        [oci.entry("/".join("d" * (MAX_DEPTH + 1)), b"")],
        [oci.entry("x", b"", uid=2**40)],
        [oci.entry("x", b"", pax_headers={"mtime": "inf"})],
    ],
)
def test_a_hostile_entry_is_refused(store: ImageStore, tmp_path: Path, entries: list[oci.Entry]) -> None:
    """Climbing names, links to nowhere and impossible values end the import; the store stays empty."""
    with pytest.raises((ArchiveInvalid, InvalidImagePath)):
        import_entries(store, tmp_path, entries)
    assert list(store.root.iterdir()) == []
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("target", ["/", "../../../..", "/etc", "../../images"])
def test_a_link_out_of_the_image_leads_inside_it(store: ImageStore, tmp_path: Path, target: str) -> None:
    """A file written through a link that points outside lands inside the image, and the host has no new file."""
    digest = import_entries(store, tmp_path, [oci.link("out", target), oci.entry("out/planted", b"x")])
    assert not list(tmp_path.rglob("planted"))
    out = erofs.extract(store.container(digest).rootfs, tmp_path / "out")
    assert len(list((out / "rootfs").rglob("planted"))) == 1


def test_a_link_to_a_host_file_brings_no_content(store: ImageStore, tmp_path: Path) -> None:
    """A hard link through a link to the host finds nothing: there is only the image's own tree."""
    (tmp_path / "secret").write_text("of the host")
    with pytest.raises(ArchiveInvalid, match="hard link"):
        import_entries(store, tmp_path, [oci.link("l", str(tmp_path)), oci.hard_link("stolen", "l/secret")])


def _truncate(layout: Path) -> None:
    largest = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-10])


def _swap_bytes(layout: Path) -> None:
    largest = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(bytes(reversed(largest.read_bytes())))


def _remove_blob(layout: Path) -> None:
    max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size).unlink()


def _link_blob(layout: Path) -> None:
    largest = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    largest.rename(layout / "elsewhere")
    largest.symlink_to(layout / "elsewhere")


def _digest_with_path(layout: Path) -> None:
    entry = json.loads((layout / "index.json").read_text())["manifests"][0]
    oci.write_index(layout, [{**entry, "digest": "sha256:../../../etc/passwd"}])


def _no_json(layout: Path) -> None:
    (layout / "index.json").write_text("[" * 100_000)


def _other_shape(layout: Path) -> None:
    (layout / "index.json").write_text('{"manifests": {"a": 1}}')


def _no_index(layout: Path) -> None:
    (layout / "index.json").unlink()


def _other_platform(layout: Path) -> None:
    entry = json.loads((layout / "index.json").read_text())["manifests"][0]
    oci.write_index(layout, [{**entry, "platform": {"os": "linux", "architecture": "arm64"}}])


@pytest.mark.parametrize(
    "damage",
    [
        *(_truncate, _swap_bytes, _remove_blob, _link_blob, _digest_with_path, _no_json),
        *(_other_shape, _no_index, _other_platform),
    ],
)
def test_a_damaged_layout_is_refused(store: ImageStore, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Missing, changed or ambiguous parts of a layout are found before anything is stored."""
    layout = oci.layout(tmp_path / "layout", [oci.tar([oci.entry("a", b"1" * 5000)])])
    damage(layout)
    with pytest.raises(ArchiveInvalid):
        store.import_container(layout)
    assert list(store.root.iterdir()) == []


def test_a_layer_with_another_content_hash_is_refused(store: ImageStore, tmp_path: Path) -> None:
    """A layer must unpack to what the configuration says, not only be the right blob."""
    layout = oci.layout(tmp_path / "layout", [oci.tar([])], diff_ids=["sha256:" + "0" * 64])
    with pytest.raises(ArchiveInvalid, match="hash"):
        store.import_container(layout)


def test_a_swelling_layer_is_stopped(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small layer that unpacks without end is cut off at the limit."""
    monkeypatch.setattr(packing, "MAX_UNPACKED", 1 << 20)
    layout = oci.layout(tmp_path / "layout", [gzip.compress(bytes(50 << 20))])
    with pytest.raises(ArchiveInvalid, match="more than 1048576 bytes"):
        store.import_container(layout)
    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize(
    "config",
    [
        {"Env": "A=1"},
        {"Env": ["A=\ud800"]},
        {"StopSignal": "SIGNOPE"},
        {"Cmd": [1]},
        {"Cmd": ["a\0b"]},
        {"Cmd": ["x"] * 2000},
        {"User": {"uid": 0}},
        {"ExposedPorts": {"x" * 200_000: {}}},
        {"ExposedPorts": 5},
    ],
)
def test_a_senseless_configuration_is_refused(store: ImageStore, tmp_path: Path, config: dict[str, object]) -> None:
    """Settings no process could be started with are an error at import, not at start."""
    with pytest.raises(ArchiveInvalid, match="config"):
        store.import_container(oci.layout(tmp_path / "layout", [oci.tar([])], config))


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8bno gzip", b"\x28\xb5\x2f\xfdno zstd", bytes(2048)])
def test_a_file_that_is_no_archive_is_refused(store: ImageStore, tmp_path: Path, content: bytes) -> None:
    """Any other file is an error that says so."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ArchiveInvalid):
        store.import_container(path)


def test_a_missing_file_is_refused(store: ImageStore, tmp_path: Path) -> None:
    """A path without a file is an error that says so."""
    with pytest.raises(ArchiveInvalid, match="no such file"):
        store.import_container(tmp_path / "missing")


PARTS = st.sampled_from(["a", "b", "..", ".", "", ".wh.a", ".wh..wh..opq", ".wh.", "\udcff", "etc", "a" * 260])
PATHS = st.lists(PARTS, min_size=1, max_size=5).map("/".join)
KINDS = st.sampled_from([b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"S", b"L", b"x"])
ENTRIES = st.lists(
    st.builds(
        lambda name, kind, target, content: oci.entry(name, content, type=kind, linkname=target),
        PATHS,
        KINDS,
        PATHS,
        st.binary(max_size=600),
    ),
    max_size=8,
)
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _import_or_refuse(base: Path, layer: bytes) -> None:
    """Import a layer; only typed errors may come out, and an image that comes out must be sound."""
    store = ImageStore(base / "images")
    try:
        digest = store.import_container(oci.layout(base / "layout", [layer]))
    except ImageError:
        assert list(store.root.iterdir()) == []
        return
    assert store.verify(digest) == []
    erofs.extract(store.container(digest).rootfs, base / "out")


@FUZZ
@given(entries=ENTRIES)
def test_any_entries_end_well(tmp_path_factory: pytest.TempPathFactory, entries: list[oci.Entry]) -> None:
    """Whatever a layer lists, the outcome is a sound image or a typed error."""
    base = tmp_path_factory.mktemp("fuzz")
    _import_or_refuse(base, oci.tar(entries))


@FUZZ
@given(data=st.data())
def test_any_flipped_byte_ends_well(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A tar archive with bytes changed anywhere is a sound image or a typed error."""
    entries = [oci.entry("a", b"1" * 700, pax_headers={"comment": "c"}), oci.link("b", "a"), oci.hard_link("c", "a")]
    layer = bytearray(oci.tar(entries))
    for _ in range(data.draw(st.integers(1, 4))):
        layer[data.draw(st.integers(0, 4095))] = data.draw(st.integers(0, 255))
    base = tmp_path_factory.mktemp("fuzz")
    _import_or_refuse(base, bytes(layer))


@pytest.fixture(scope="module")
def sparse_archives(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Give layers with a sparse file and long names in each of GNU tar's ways."""
    root = tmp_path_factory.mktemp("sparse")
    (root / "hole").write_bytes(b"x" + bytes(300_000) + b"y" * 5000 + bytes(100_000))
    subprocess.run(["fallocate", "--dig-holes", root / "hole"], check=True)
    (root / ("n" * 150)).symlink_to("t" * 120)
    versions = [["--format=pax", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0")]
    commands = [["tar", "-C", root, "--sparse", *form, "-cf", "-", "."] for form in (["--format=gnu"], *versions)]
    return [subprocess.run(command, check=True, capture_output=True).stdout for command in commands]


def _with_sums(layer: bytearray) -> bytes:
    """Return the archive with right checksums, so that what was changed in a header is read."""
    for start in range(0, len(layer) - 511, 512):
        if layer[start + 257 : start + 262] == b"ustar":
            layer[start + 148 : start + 156] = b" " * 8
            layer[start + 148 : start + 156] = b"%06o\0 " % sum(layer[start : start + 512])
    return bytes(layer)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_header_ends_well(tmp_path: Path, sparse_archives: list[bytes], data: st.DataObject) -> None:
    """Names, sizes and maps changed anywhere, with checksums that fit, are a tree or a typed error."""
    layer = bytearray(data.draw(st.sampled_from(sparse_archives)))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, min(len(layer), 6144) - 1))
        layer[place] = data.draw(st.sampled_from(b"0123456789-\x00\x80\xff=,\n ") | st.integers(0, 255))
    path = tmp_path / "layer.tar"
    path.write_bytes(_with_sums(layer))
    tree = Tree()
    try:
        apply_layer(tree, path, "layer")
    except ImageError:
        return
    assert all(node.size >= 0 for _, node in walk(tree.root) if isinstance(node, File))
