"""The images of a host: immutable directories named by the hash of their manifest."""

from __future__ import annotations

import builtins
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cellmesh.image.cache import sha256_of
from cellmesh.image.claims import DRAFT, SPOOL, claimed
from cellmesh.image.container import import_container
from cellmesh.image.errors import ImageCorrupt, ImageError, ImageNotFound, StoreFull
from cellmesh.image.manifest import (
    MANIFEST,
    MAX_MANIFEST,
    ContainerImage,
    GuestImage,
    Image,
    StoredFile,
    check_digest,
    decode,
    digest_of,
)
from cellmesh.image.progress import Progress, silent

DEFAULT_GUEST = "default-guest"
DIRECTORY_MODE = 0o755
FILE_MODE = 0o644
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One way in which a stored image is not what its digest says."""

    file: str
    kind: Literal["missing", "changed", "added", "mode"]
    detail: str


class ImageStore:
    """Guest and container images below `root`; safe for any number of readers and writers, of any process."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        """Return where the image of `digest` lies or would lie; raises InvalidDigest."""
        return self.root / check_digest(digest)

    def get(self, digest: str) -> Image:
        """Return the image of `digest`; raises InvalidDigest, ImageNotFound or ImageCorrupt (of its manifest alone)."""
        path = self.path(digest)
        try:
            data = _read_plain(path / MANIFEST)
        except FileNotFoundError as error:
            raise ImageNotFound(digest, self.root) from error
        except OSError as error:
            raise ImageCorrupt(digest, f"its manifest cannot be opened ({error.strerror})") from error
        if digest_of(data) != digest:
            raise ImageCorrupt(digest, "its manifest was changed")
        return decode(path, data)

    def guest(self, digest: str) -> GuestImage:
        """Return the guest image of `digest`; raises as `get` does, and ImageError for a container image."""
        image = self.get(digest)
        if not isinstance(image, GuestImage):
            raise ImageError(f"{digest} is a container image; name a guest image instead.")
        return image

    def container(self, digest: str) -> ContainerImage:
        """Return the container image of `digest`; raises as `get` does, and ImageError for a guest image."""
        image = self.get(digest)
        if not isinstance(image, ContainerImage):
            raise ImageError(f"{digest} is a guest image; name a container image instead.")
        return image

    def list(self) -> list[Image]:
        """Return every image whose manifest is sound, by digest."""
        found = []
        for digest in self.digests():
            try:
                found.append(self.get(digest))
            except (ImageNotFound, ImageCorrupt):
                continue  # being removed, or damaged: `verify` says how
        return found

    def digests(self) -> Iterator[str]:
        """Yield the digest of every directory, sound or not."""
        for path in sorted(self.root.glob("[0-9a-f]" * 64)):
            yield f"sha256:{path.name}"

    def verify(self, digest: str, *, progress: Progress = silent) -> builtins.list[Drift]:
        """Return every difference between the image on disk and its digest, reading all of its bytes."""
        try:
            image = self.get(digest)
        except ImageCorrupt as error:
            return [Drift(file=MANIFEST, kind="changed", detail=str(error))]
        drifts: builtins.list[Drift] = []
        done = 0
        for file in image.files:
            progress("verifying", done, image.size)
            drifts.extend(_drift(image.path, file))
            done += file.size
        progress("verifying", done, image.size)
        known = {MANIFEST, *(file.file for file in image.files)}
        drifts.extend(
            Drift(file=name, kind="added", detail="it is not part of the image")
            for name in sorted(path.name for path in image.path.iterdir())
            if name not in known
        )
        return drifts

    def default_guest(self) -> str | None:
        """Return the digest of the guest image new VMs get, or None if none was chosen."""
        try:
            digest = _read_plain(self.root / DEFAULT_GUEST).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return None
        check_digest(digest)
        return digest

    def set_default_guest(self, digest: str) -> None:
        """Choose the guest image of new VMs; raises as `guest` does."""
        self.guest(digest)
        with tempfile.NamedTemporaryFile("w", dir=self.root, prefix=".default-", delete=False) as out:
            out.write(f"{digest}\n")
            out.flush()
            os.fchmod(out.fileno(), FILE_MODE)
            os.fsync(out.fileno())
        Path(out.name).replace(self.root / DEFAULT_GUEST)
        _sync_directory(self.root)

    def import_container(self, path: Path, *, reference: str = "", progress: Progress = silent) -> str:
        """Import an OCI layout, what `docker save` or skopeo's `dir:` writes, or a pipe with one; return the digest.

        `-` is standard input; `reference` names one of several images. Raises ArchiveInvalid, AmbiguousImage,
        CredentialInImage, InvalidImagePath, ImageTooLarge or StoreFull; the store is then as it was.
        """
        return import_container(self, path, reference=reference, progress=progress)

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """Give a directory to write an image's files in; it is gone afterwards unless it was published.

        Raises StoreFull if the disk has no room for what is written there, or in `spool`.
        """
        with self._explained():
            if not self.root.is_dir():
                self.root.mkdir(parents=True, exist_ok=True)
                # Whatever our umask: VMs read here under uids of their own.
                self.root.chmod(DIRECTORY_MODE)
            with claimed(self.root, DRAFT) as work:
                yield work

    @contextmanager
    def spool(self) -> Iterator[Path]:
        """Give a directory for what an import unpacks; it is gone afterwards. To be used inside `draft`."""
        with claimed(self.root, SPOOL) as work:
            yield work

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno is not None and error.errno in FULL:
                raise StoreFull(self.root, os.strerror(error.errno)) from error
            raise

    def publish(self, draft: Path, manifest: bytes) -> str:
        """Make a draft an image: all of it is on disk before its name appears; an image that is there already stays."""
        digest = digest_of(manifest)
        (draft / MANIFEST).write_bytes(manifest)
        for path in draft.iterdir():
            path.chmod(FILE_MODE)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        draft.chmod(DIRECTORY_MODE)
        _sync_directory(draft)
        try:
            draft.rename(self.path(digest))
        except OSError:
            if not self.path(digest).is_dir():
                raise
        _sync_directory(self.root)
        return digest


def _drift(directory: Path, file: StoredFile) -> Iterator[Drift]:
    path = directory / file.file
    try:
        status = path.lstat()
    except FileNotFoundError:
        yield Drift(file=file.file, kind="missing", detail=f"{file.size} bytes were expected")
        return
    if not stat.S_ISREG(status.st_mode):
        yield Drift(file=file.file, kind="changed", detail="it is no regular file")
    elif status.st_size != file.size:
        yield Drift(file=file.file, kind="changed", detail=f"it has {status.st_size} bytes instead of {file.size}")
    elif sha256_of(path) != file.sha256:
        yield Drift(file=file.file, kind="changed", detail="its bytes differ")
    elif stat.S_IMODE(status.st_mode) != FILE_MODE:
        yield Drift(file=file.file, kind="mode", detail=f"its mode is {stat.S_IMODE(status.st_mode):o}")


def _read_plain(path: Path) -> bytes:
    """Read a small file that is no link, so that nothing outside the store can pose as part of it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(MAX_MANIFEST)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
