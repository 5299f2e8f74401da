"""Where downloads and half-products are kept between builds: by content, so it may be deleted at any time."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellmesh.image.claims import SCRATCH, claimed, locked


def default_cache() -> Path:
    """Return the cache directory of this user, from XDG_CACHE_HOME if that is set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "cellmesh"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


class BuildCache:
    """A directory of packages by SHA-256 and of prepared things by key."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def package(self, sha256: str) -> Path | None:
        """Return the package file with this hash, if it is here."""
        path = self.root / "packages" / sha256
        return path if path.is_file() else None

    def keep_package(self, path: Path) -> str:
        """Move a downloaded package into the cache and return its hash."""
        sha256 = sha256_of(path)
        target = self.root / "packages" / sha256
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{sha256}.{os.getpid()}")
        shutil.copyfile(path, partial)
        partial.replace(target)
        path.unlink()
        return sha256

    def file(self, kind: str, key: str) -> Path:
        """Return where the file `key` of `kind` is or would be."""
        path = self.root / kind / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a directory that is gone afterwards, on the same file system as the cache."""
        self.root.mkdir(parents=True, exist_ok=True)
        with claimed(self.root, SCRATCH) as work:
            yield work

    @contextmanager
    def exclusive(self, kind: str, key: str) -> Iterator[Path]:
        """Give where `key` of `kind` is or would be, to one builder at a time among all processes and threads."""
        path = self.file(kind, key)
        lock = path.with_name(f".{key}.lock")
        lock.mkdir(exist_ok=True)
        with locked(lock):
            yield path

    @contextmanager
    def prepared(self, kind: str, key: str) -> Iterator[tuple[Path, bool]]:
        """Give a directory and whether it is already filled; fill it if not, and it is published on leaving.

        Builders of the same key wait for the first one. What a killed builder began is never published.
        """
        with self.exclusive(kind, key) as target:
            if target.is_dir():
                yield target, True
                return
            with self.scratch() as work:
                fresh = work / "new"
                fresh.mkdir()
                yield fresh, False
                fresh.rename(target)
