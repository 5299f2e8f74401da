"""The image store: what is published can be found, what was changed is told, what is foreign is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cellmesh.image import (
    ContainerConfig,
    ContainerSource,
    ImageCorrupt,
    ImageError,
    ImageNotFound,
    ImageStore,
    InvalidDigest,
    claims,
)
from cellmesh.image.manifest import (
    MANIFEST,
    StoredFile,
    canonical,
    container_manifest,
    describe,
    digest_of,
    guest_manifest,
)

SOURCE = ContainerSource(format="oci", digest="sha256:" + "0" * 64, reference="app:1")


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """Give an empty store."""
    return ImageStore(tmp_path / "images")


def publish_container(store: ImageStore, content: bytes = b"disk") -> str:
    """Publish a container image with `content` as its disk."""
    with store.draft() as draft:
        (draft / "rootfs.erofs").write_bytes(content)
        config = ContainerConfig(env=("A=1",), cmd=("run",))
        return store.publish(draft, container_manifest(describe(draft / "rootfs.erofs"), config, SOURCE))


def publish_guest(store: ImageStore) -> str:
    """Publish a guest image of three small files."""
    with store.draft() as draft:
        files: dict[str, StoredFile] = {}
        for part, name in (("kernel", "vmlinux"), ("initramfs", "initramfs"), ("rootfs", "rootfs.erofs")):
            (draft / name).write_bytes(part.encode())
            files[part] = describe(draft / name, release="6.12" if part == "kernel" else None)
        return store.publish(draft, guest_manifest(files, cmdline="quiet", agent_version="1", epoch=1, packages=()))


def test_vms_can_read_whatever_our_umask(store: ImageStore) -> None:
    """The directory of all images, and each, may be entered by uids of others, though our own files may not be read."""
    before = os.umask(0o077)
    try:
        digest = publish_container(store)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (store.root, store.path(digest))] == [0o755, 0o755]
    assert (store.path(digest) / "rootfs.erofs").stat().st_mode & 0o777 == 0o644


def test_what_is_published_is_found(store: ImageStore) -> None:
    """A published image is there by its digest, with modes others can read, and nothing else is left."""
    digest = publish_container(store)
    image = store.container(digest)
    assert image.rootfs.read_bytes() == b"disk"
    assert image.config.env == ("A=1",)
    assert image.path.stat().st_mode & 0o777 == 0o755
    assert image.rootfs.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in store.root.iterdir()] == [digest.removeprefix("sha256:")]


def test_publishing_twice_is_one_image(store: ImageStore) -> None:
    """The same content a second time is the same digest and leaves the first as it is."""
    first = publish_container(store)
    before = store.container(first).rootfs.stat()
    assert publish_container(store) == first
    assert store.container(first).rootfs.stat().st_ino == before.st_ino


def test_a_failed_draft_leaves_nothing(store: ImageStore) -> None:
    """An error while an image is written leaves the store as it was."""

    def half() -> None:
        with store.draft() as draft:
            (draft / "half").write_bytes(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize("prefix", [".draft-", ".spool-"])
def test_what_a_killed_import_left_goes_with_the_next(store: ImageStore, prefix: str) -> None:
    """The lock of a dead process is gone, so its directory is removed at once; a live one's stays."""
    publish_container(store)
    holder = """if True:
        import sys, time
        from pathlib import Path
        from cellmesh.image.claims import claimed
        with claimed(Path(sys.argv[1]), sys.argv[2]) as work:
            (work / "file").write_bytes(b"x")
            print(work, flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", holder, store.root, prefix], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        work = Path(process.stdout.readline().strip())
        publish_container(store, b"other")
        assert (work / "file").exists()
        process.kill()
        process.wait()
        assert (work / "file").exists()
        publish_container(store, b"third")
        assert not work.exists()


def test_a_draft_is_never_seen_without_its_lock(store: ImageStore) -> None:
    """Many that begin and sweep at the same time lose nothing: each finds its own directory until it ends."""
    store.root.mkdir()

    def work(number: int) -> None:
        for _ in range(20):
            with store.draft() as draft:
                (draft / "mine").write_text(str(number))
                assert (draft / "mine").read_text() == str(number)

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(work, range(8)))) == 8
    assert list(store.root.iterdir()) == []


def test_without_the_lock_a_live_draft_would_go(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: a sweep that takes no notice of locks removes the directory of one that is alive."""
    monkeypatch.setattr(claims.fcntl, "flock", lambda *_: None)
    with store.draft() as first, store.draft():
        assert not first.exists()


def _change(path: Path) -> None:
    (path / "rootfs.erofs").write_bytes(b"DISK")


def _grow(path: Path) -> None:
    (path / "rootfs.erofs").write_bytes(b"disk and more")


def _remove(path: Path) -> None:
    (path / "rootfs.erofs").unlink()


def _add(path: Path) -> None:
    (path / "rootfs.erofs.bak").write_bytes(b"")


def _open_up(path: Path) -> None:
    (path / "rootfs.erofs").chmod(0o666)


def _link(path: Path) -> None:
    (path / "rootfs.erofs").rename(path.parent / "elsewhere")
    (path / "rootfs.erofs").symlink_to(path.parent / "elsewhere")


def _rewrite_manifest(path: Path) -> None:
    (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes().replace(b"A=1", b"A=2"))


@pytest.mark.parametrize(
    ("damage", "file", "kind"),
    [
        (_change, "rootfs.erofs", "changed"),
        (_grow, "rootfs.erofs", "changed"),
        (_remove, "rootfs.erofs", "missing"),
        (_add, "rootfs.erofs.bak", "added"),
        (_open_up, "rootfs.erofs", "mode"),
        (_link, "rootfs.erofs", "changed"),
        (_rewrite_manifest, MANIFEST, "changed"),
    ],
)
def test_verify_tells_every_drift(store: ImageStore, damage: Callable[[Path], None], file: str, kind: str) -> None:
    """Each way to differ from the digest is found and named; a sound image has none."""
    digest = publish_container(store)
    assert store.verify(digest) == []
    damage(store.path(digest))
    assert [(drift.file, drift.kind) for drift in store.verify(digest)] == [(file, kind)]


def test_verify_reports_progress(store: ImageStore) -> None:
    """The caller hears how many bytes are done."""
    heard: list[tuple[str, int, int]] = []
    store.verify(publish_container(store), progress=lambda *step: heard.append(step))
    assert heard == [("verifying", 0, 4), ("verifying", 4, 4)]


def test_a_changed_manifest_is_never_served(store: ImageStore) -> None:
    """An image whose manifest was edited is an error for readers and left out of lists."""
    digest = publish_container(store)
    _rewrite_manifest(store.path(digest))
    with pytest.raises(ImageCorrupt):
        store.get(digest)
    assert store.list() == []


def test_a_linked_manifest_is_refused(store: ImageStore) -> None:
    """A manifest that is a link to a file elsewhere does not count, even with the right bytes."""
    digest = publish_container(store)
    manifest = store.path(digest) / MANIFEST
    manifest.rename(store.root / "elsewhere")
    manifest.symlink_to(store.root / "elsewhere")
    with pytest.raises(ImageCorrupt):
        store.get(digest)


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:../../etc", "sha256:" + "A" * 64, "md5:" + "0" * 64, "0" * 64]
)
def test_a_digest_is_no_path(store: ImageStore, digest: str) -> None:
    """Nothing but a digest gets near the file system."""
    with pytest.raises(InvalidDigest):
        store.get(digest)


def test_an_unknown_digest_is_not_found(store: ImageStore) -> None:
    """A digest without an image is its own error."""
    with pytest.raises(ImageNotFound):
        store.get("sha256:" + "1" * 64)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"schema": 2, "kind": "guest"},
        {"schema": 1, "kind": "other"},
        {"schema": 1, "kind": "guest", "kernel": {"file": "../x"}},
    ],
)
def test_a_foreign_manifest_is_corrupt(store: ImageStore, document: dict[str, object]) -> None:
    """A manifest of another shape is a typed error, whatever is missing in it."""
    data = canonical(document)
    with store.draft() as draft:
        digest = store.publish(draft, data)
    assert digest == digest_of(data)
    with pytest.raises(ImageCorrupt):
        store.get(digest)


def test_the_default_guest_is_a_guest_image(store: ImageStore) -> None:
    """None at first, then what was chosen; a container image cannot be chosen."""
    assert store.default_guest() is None
    guest, container = publish_guest(store), publish_container(store)
    store.set_default_guest(guest)
    assert store.default_guest() == guest
    with pytest.raises(ImageError, match="container image"):
        store.set_default_guest(container)
    assert store.default_guest() == guest
    assert {image.digest for image in store.list()} == {guest, container}
    assert store.guest(guest).kernel_release == "6.12"
