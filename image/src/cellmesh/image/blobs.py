"""The named parts of a container archive, each a stretch of a plain file on the host."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from cellmesh.image.errors import ArchiveInvalid
from cellmesh.image.limits import MAX_DOCUMENT, MAX_ENTRIES, MAX_UNPACKED
from cellmesh.image.packing import CHUNK, Allowance, chunks, is_packed, unpack
from cellmesh.image.tarball import members
from cellmesh.image.tree import Extent, read

STANDARD_INPUT = Path("-")


class Blobs(Protocol):
    """An archive whose parts can be found by name; `name` is what the user calls it."""

    name: str

    def find(self, name: str) -> Extent | None:
        """Return where the part `name` is, or None."""

    def holds(self, name: str) -> bool:
        """Tell whether there is a directory or file `name`."""


class DirectoryBlobs:
    """A directory; only regular files in it count, so a link in it leads nowhere."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.name = str(root)

    def find(self, name: str) -> Extent | None:
        """Return where the part `name` is, or None."""
        parts = name.split("/")
        if any(part in {"", ".", ".."} for part in parts):
            return None
        path = self._root
        for part in parts:
            path /= part
            try:
                status = path.lstat()
            except (OSError, ValueError):
                return None
            if stat.S_ISLNK(status.st_mode):
                return None
        return Extent(path=path, offset=0, size=status.st_size) if stat.S_ISREG(status.st_mode) else None

    def holds(self, name: str) -> bool:
        """Tell whether there is a directory or file `name`."""
        return os.path.lexists(self._root / name)


class TarBlobs:
    """An uncompressed tar file, read in place."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._parts: dict[str, Extent] = {}
        self._tops: set[str] = set()
        links: dict[str, str] = {}
        for number, member in enumerate(members(path, name)):
            if number >= MAX_ENTRIES:
                raise ArchiveInvalid(name, f"it has more than {MAX_ENTRIES} entries.")
            part = posixpath.normpath(member.name)
            self._tops.add(part.lstrip("/").partition("/")[0])
            if member.isreg() and not member.issparse():
                self._parts[part] = Extent(path=path, offset=member.offset_data, size=member.size)
            elif member.issym():  # older docker links layers that occur twice
                links[part] = posixpath.normpath(posixpath.join(posixpath.dirname(part), member.linkname))
            elif member.islnk():  # GNU tar, of two files that are one
                links[part] = posixpath.normpath(member.linkname)
        for part, target in links.items():
            if target in self._parts:
                self._parts.setdefault(part, self._parts[target])

    def find(self, name: str) -> Extent | None:
        """Return where the part `name` is, or None."""
        return self._parts.get(name)

    def holds(self, name: str) -> bool:
        """Tell whether there is a directory or file `name`."""
        return name in self._tops


@contextmanager
def open_blobs(path: Path, spool: Path) -> Iterator[Blobs]:
    """Give the parts of the archive at `path`: a directory, a tar file that may be compressed, or a pipe with one.

    `-` is standard input. What comes through a pipe is kept in `spool`.
    """
    if path == STANDARD_INPUT or path.is_fifo():
        kept = spool / "input"
        _keep(path, kept)
        yield _tar(kept, spool, str(path))
    elif path.is_dir():
        yield DirectoryBlobs(path)
    elif path.is_file():
        yield _tar(path, spool, path.name)
    elif path.exists():
        raise ArchiveInvalid(str(path), "it is no directory, file or pipe.")
    else:
        raise ArchiveInvalid(str(path), "there is no such file or directory.")


def _tar(path: Path, spool: Path, name: str) -> TarBlobs:
    whole = Extent(path=path, offset=0, size=path.stat().st_size)
    if not whole.size:
        raise ArchiveInvalid(name, "it is empty.")
    if not is_packed(whole):
        return TarBlobs(path, name)
    plain = spool / "archive.tar"
    unpack(whole, plain, Allowance(), name)
    return TarBlobs(plain, name)


def _keep(path: Path, target: Path) -> None:
    """Copy what comes through a pipe, checked against the bound before each piece is written."""
    written = 0
    with _pipe(path) as source, target.open("xb") as out:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > MAX_UNPACKED:
                raise ArchiveInvalid(str(path), f"more than {MAX_UNPACKED} bytes came.")
            out.write(chunk)


def _pipe(path: Path) -> BinaryIO:
    if path != STANDARD_INPUT:
        return path.open("rb")
    try:
        source = os.fdopen(os.dup(0), "rb")
    except OSError as error:
        raise ArchiveInvalid("-", f"standard input can't be read ({error.strerror}).") from error
    if source.isatty():
        source.close()
        raise ArchiveInvalid("-", "standard input is a terminal; pipe an archive into the command.")
    return source


def document(blobs: Blobs, name: str) -> dict[str, object] | list[object]:
    """Return a JSON document of the archive."""
    return parse(need(blobs, name, MAX_DOCUMENT), name)


def parse(extent: Extent, name: str) -> dict[str, object] | list[object]:
    """Return the JSON document that `extent` holds."""
    try:
        parsed = json.loads(read(extent))
    except (ValueError, RecursionError) as error:
        raise ArchiveInvalid(name, "it is not JSON.") from error
    if not isinstance(parsed, dict | list):
        raise ArchiveInvalid(name, "it is neither a JSON object nor an array.")
    return parsed


def need(blobs: Blobs, name: str, limit: int) -> Extent:
    """Return a part that must be there and be no larger than `limit` bytes."""
    extent = blobs.find(name)
    if extent is None:
        raise ArchiveInvalid(name, "the archive lacks it; it is incomplete, export the image again.")
    if extent.size > limit:
        raise ArchiveInvalid(name, f"it has {extent.size} bytes, {limit} are allowed.")
    return extent


def hash_of(extent: Extent) -> str:
    """Return the SHA-256 of a part, in hex."""
    total = hashlib.sha256()
    for chunk in chunks(extent):
        total.update(chunk)
    return total.hexdigest()
