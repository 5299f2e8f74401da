"""Archives that want more than an image may have: refused by a typed error, while they are read, with nothing left."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cellmesh.image import ArchiveInvalid, ImageError, ImageStore, ImageTooLarge, StoreFull, blobs, packing, tree
from cellmesh.image import container as importer
from cellmesh.image.tarball import members
from support import oci

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """Give an empty store."""
    return ImageStore(tmp_path / "images")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the size of each piece that was unpacked so far; what is counted is written right after."""
    sizes: list[int] = []
    spend = packing.Allowance.spend

    def spent(allowance: packing.Allowance, size: int, name: str) -> None:
        spend(allowance, size, name)
        sizes.append(size)

    monkeypatch.setattr(packing.Allowance, "spend", spent)
    return sizes


def zstd(data: bytes) -> bytes:
    """Pack with zstd."""
    return subprocess.run(["zstd", "-c"], input=data, check=True, capture_output=True).stdout


PACKERS = pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])


@PACKERS
def test_a_layer_that_swells_is_stopped_while_it_is_written(
    store: ImageStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: list[int],
    pack: Callable[[bytes], bytes],
) -> None:
    """A layer may unpack to so many times its size and not more, and no more than that reaches the disk."""
    monkeypatch.setattr(packing, "FREE_UNPACKED", 4 * MIB)
    layer = pack(bytes(64 * MIB))
    layout = oci.layout(tmp_path / "layout", [layer], diff_ids=[oci.digest(bytes(64 * MIB))])
    with pytest.raises(ArchiveInvalid, match="100 times its size"):
        store.import_container(layout)
    assert sum(written) <= 4 * MIB + packing.MAX_RATIO * len(layer)
    assert list(store.root.iterdir()) == []


@PACKERS
def test_without_the_ratio_it_would_be_written(
    store: ImageStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: list[int],
    pack: Callable[[bytes], bytes],
) -> None:
    """Control: with the bound taken away all of it is unpacked."""
    monkeypatch.setattr(packing, "FREE_UNPACKED", 4 * MIB)
    monkeypatch.setattr(packing, "MAX_RATIO", 1 << 20)
    layout = oci.layout(tmp_path / "layout", [pack(bytes(64 * MIB))], diff_ids=[oci.digest(bytes(64 * MIB))])
    store.import_container(layout)
    assert sum(written) == 64 * MIB


def test_the_archive_around_the_layers_is_bounded_too(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compressed archive that swells is refused before it is looked into."""
    monkeypatch.setattr(packing, "FREE_UNPACKED", MIB)
    (tmp_path / "app.tar.gz").write_bytes(gzip.compress(bytes(64 * MIB)))
    with pytest.raises(ArchiveInvalid, match="100 times its size"):
        store.import_container(tmp_path / "app.tar.gz")


@PACKERS
def test_a_compressed_part_that_is_cut_off_is_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """The end of a stream must be there."""
    packed = pack(bytes(range(256)) * 4096)
    (tmp_path / "part").write_bytes(packed[: len(packed) // 2])
    extent = tree.Extent(path=tmp_path / "part", offset=0, size=len(packed) // 2)
    with pytest.raises(ArchiveInvalid, match="damaged"):
        packing.unpack(extent, tmp_path / "out", packing.Allowance(), "part")


@PACKERS
def test_several_streams_in_a_row_are_one(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Parallel packers write one stream after the other."""
    packed = pack(b"1" * 3 * MIB) + pack(b"2")
    (tmp_path / "part").write_bytes(b"before" + packed + b"after")
    extent = tree.Extent(path=tmp_path / "part", offset=6, size=len(packed))
    packing.unpack(extent, tmp_path / "out", packing.Allowance(), "part")
    assert (tmp_path / "out").read_bytes() == b"1" * 3 * MIB + b"2"


def headers(*entries: tuple[str, dict[str, str]]) -> bytes:
    """Return a tar archive of empty files with these PAX records."""
    return oci.tar([oci.entry(name, pax_headers=records) for name, records in entries])


def old_sparse() -> bytes:
    """Return a GNU sparse header whose map goes on in a block that is not there."""
    info = tarfile.TarInfo("x")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def long_name(size: int) -> bytes:
    """Return a GNU long name of `size` bytes, of which none follow."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "layer",
    [
        *(headers(("x", {"size": size})) for size in ("-1", "-512", str(2**62), str(2**63), str(2**80), "9" * 4000)),
        headers(("x", {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"})),
        headers(("x", {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "-5", "size": "-5"})),
        headers(("x", {"GNU.sparse.map": "0,5,3,5", "GNU.sparse.size": "100"})),
        headers(("x", {"GNU.sparse.map": "0,-5", "GNU.sparse.size": "100"})),
        *(headers(("x", {key: "-1"})) for key in ("uid", "gid")),
        headers(("x", {"comment": "y" * 2 * MIB})),
        long_name(2 * MIB),
        long_name(2**33),
        long_name(100)[:-1],
        old_sparse(),
        oci.tar([oci.entry("a", b"1")]).rstrip(b"\0") + b"\0" * 511 + b"no header" * 60,
        oci.tar([oci.entry("a", b"1" * 600)])[: 512 + 599],
    ],
)
def test_a_header_that_lies_is_refused(store: ImageStore, tmp_path: Path, layer: bytes) -> None:
    """Sizes that are negative, huge or not there, maps without order, headers without end: an error that names it."""
    with pytest.raises(ArchiveInvalid):
        store.import_container(oci.layout(tmp_path / "layout", [layer]))
    assert list(store.root.iterdir()) == []


def test_a_long_header_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: with the bound taken away the header is read whole; the reader takes its length from the archive."""
    (tmp_path / "x.tar").write_bytes(headers(("x", {"comment": "y" * 2 * MIB})))
    with pytest.raises(ArchiveInvalid, match="bytes of header"):
        list(members(tmp_path / "x.tar", "x.tar"))
    monkeypatch.setattr("cellmesh.image.tarball.MAX_HEADER", 4 * MIB)
    (member,) = members(tmp_path / "x.tar", "x.tar")
    assert len(member.pax_headers["comment"]) == 2 * MIB


@pytest.mark.parametrize(
    ("limit", "entries"),
    [
        ("MAX_ENTRIES", [oci.entry(f"f{number}") for number in range(40)]),
        ("MAX_ENTRIES", [oci.entry("/".join("d" * 40))]),
        ("MAX_TEXT", [oci.entry("n" * 200)]),
        ("MAX_TEXT", [oci.link("l", "t" * 200)]),
        ("MAX_STEPS", [oci.directory("/".join("abcd")), *(oci.entry("a/b/c/d/e") for _ in range(20))]),
    ],
)
def test_a_tree_is_bounded_over_all_layers(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, entries: list[oci.Entry]
) -> None:
    """Entries, directories on the way, names and lookups count for all layers together; without the bound they pass."""
    half = len(entries) // 2
    layout = oci.layout(tmp_path / "layout", [oci.tar(entries[:half]), oci.tar(entries[half:])])
    store.import_container(layout)
    before = sorted(store.root.iterdir())
    monkeypatch.setattr(tree, limit, 60 if limit == "MAX_STEPS" else 39 if limit == "MAX_ENTRIES" else 199)
    with pytest.raises(ImageTooLarge):
        store.import_container(layout)
    assert sorted(store.root.iterdir()) == before


def sparse_layer(size: int) -> bytes:
    """Return a layer with one file that is nothing but a hole of `size` bytes."""
    return headers(("hole", {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(size)}))


def test_holes_count_as_bytes(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of an image have a size in all, though a hole takes no byte of an archive."""
    with pytest.raises(ImageTooLarge):
        store.import_container(oci.layout(tmp_path / "large", [sparse_layer(2**40)]))
    monkeypatch.setattr(importer, "MAX_UNPACKED", MIB)
    assert store.import_container(oci.layout(tmp_path / "small", [sparse_layer(MIB)]))
    with pytest.raises(ImageTooLarge):
        store.import_container(oci.layout(tmp_path / "more", [sparse_layer(MIB + 1)]))


def test_a_pipe_is_bounded(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes through a pipe is kept up to the bound and no further."""
    monkeypatch.setattr(blobs, "MAX_UNPACKED", MIB)
    with subprocess.Popen(["cat", "/dev/zero"], stdout=subprocess.PIPE) as source:
        assert source.stdout is not None
        with pytest.raises(ArchiveInvalid, match="more than 1048576 bytes came"):
            store.import_container(Path(f"/dev/fd/{source.stdout.fileno()}"))
        source.kill()
    assert list(store.root.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """Give a file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("part", [bytes(8 * MIB), bytes(3 * MIB)])
def test_a_full_disk_is_one_error_and_leaves_nothing(small_disk: Path, tmp_path: Path, part: bytes) -> None:
    """No room for what is unpacked, or for the disk that is written from it: StoreFull, and the store is as it was."""
    store = ImageStore(small_disk / "images")
    with pytest.raises(StoreFull, match="No space left"):
        store.import_container(oci.layout(tmp_path / "layout", [oci.tar([oci.entry("x", part)])]))
    assert list(store.root.iterdir()) == []


def test_every_way_to_cut_a_layer_ends_well(tmp_path: Path) -> None:
    """Cut anywhere, an archive is read up to its last whole entry or refused; never does anything else come out."""
    whole = oci.tar(
        [oci.entry("a", b"1" * 700, pax_headers={"comment": "c"}), oci.link("b", "a"), oci.entry("c", b"2")]
    )
    names = ["a", "b", "c"]
    for end in range(0, len(whole), 61):
        (tmp_path / "cut.tar").write_bytes(whole[:end])
        try:
            found = [member.name for member in members(tmp_path / "cut.tar", "cut.tar")]
        except ImageError:
            continue
        assert found == names[: len(found)]


def test_padding_and_end_may_be_missing(tmp_path: Path) -> None:
    """Nothing, a last file without padding, and whole entries without an end are archives that tools write."""
    for data, names in [
        (b"", []),
        (oci.tar([oci.entry("a", b"12345")])[: 512 + 5], ["a"]),
        (oci.tar([oci.entry("a", b"12345")])[:1024], ["a"]),
        (oci.tar([]), []),
        (bytes(512), []),
    ]:
        (tmp_path / "x.tar").write_bytes(data)
        assert [member.name for member in members(tmp_path / "x.tar", "x.tar")] == names


def test_without_zeros_after_the_end_the_library_refuses(tmp_path: Path) -> None:
    """Control: the standard library alone takes none of them, so the zeros are what makes them readable."""
    for data in (b"", oci.tar([oci.entry("a", b"12345")])[: 512 + 5]):
        with pytest.raises(tarfile.ReadError), tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            archive.getmembers()
