"""The named parts of a container archive, each a stretch of a plain file on the host."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import posixpath
import stat
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from cellmesh.image.errors import ArchiveInvalid, ToolMissing
from cellmesh.image.tree import Extent, read

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_DOCUMENT = 4 << 20
MAX_UNPACKED = 16 << 30
CHUNK = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class Blobs(Protocol):
    """An archive whose parts can be found by name."""

    def find(self, name: str) -> Extent | None:
        """Return where the part `name` is, or None."""


class DirectoryBlobs:
    """A directory; only regular files in it count, so a link in it leads nowhere."""

    def __init__(self, root: Path) -> None:
        self._root = root

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


class TarBlobs:
    """An uncompressed tar file, read in place."""

    def __init__(self, path: Path) -> None:
        self._parts: dict[str, Extent] = {}
        links: dict[str, str] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    name = posixpath.normpath(member.name)
                    if member.isreg() and not member.issparse():
                        self._parts[name] = Extent(path=path, offset=member.offset_data, size=member.size)
                    elif member.issym():  # older docker links layers that occur twice
                        links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
        except (tarfile.TarError, ValueError) as error:
            raise ArchiveInvalid(path.name, f"it is no tar archive ({error}).") from error
        for name, target in links.items():
            if target in self._parts:
                self._parts.setdefault(name, self._parts[target])

    def find(self, name: str) -> Extent | None:
        """Return where the part `name` is, or None."""
        return self._parts.get(name)


@contextmanager
def open_blobs(path: Path, spool: Path) -> Iterator[Blobs]:
    """Give the parts of the archive at `path`, a directory or a tar file that may be compressed."""
    if path.is_dir():
        yield DirectoryBlobs(path)
    elif path.is_file():
        plain = spool / "archive.tar"
        whole = Extent(path=path, offset=0, size=path.stat().st_size)
        packed = _starts_with(whole, GZIP_MAGIC) or _starts_with(whole, ZSTD_MAGIC)
        if packed:
            unpack(whole, plain, MAX_UNPACKED, path.name)
        yield TarBlobs(plain if packed else path)
    else:
        raise ArchiveInvalid(str(path), "there is no such file or directory.")


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
    for chunk in _chunks(extent):
        total.update(chunk)
    return total.hexdigest()


def unpack(extent: Extent, target: Path, limit: int, name: str) -> str:
    """Write a part uncompressed (gzip, zstd or plain, by its first bytes) to `target`; return its SHA-256 in hex."""
    total = hashlib.sha256()
    written = 0
    with target.open("xb") as out:
        for chunk in _plain_chunks(extent, target, name):
            written += len(chunk)
            if written > limit:
                raise ArchiveInvalid(name, f"unpacked it has more than {limit} bytes.")
            total.update(chunk)
            out.write(chunk)
    return total.hexdigest()


def _plain_chunks(extent: Extent, target: Path, name: str) -> Iterator[bytes]:
    if _starts_with(extent, GZIP_MAGIC):
        return _gunzip(extent, name)
    if _starts_with(extent, ZSTD_MAGIC):
        return _unzstd(extent, target.with_name(f"{target.name}.zst"), name)
    return _chunks(extent)


def _starts_with(extent: Extent, magic: bytes) -> bool:
    return next(_chunks(extent), b"").startswith(magic)


def _chunks(extent: Extent) -> Iterator[bytes]:
    with extent.path.open("rb") as source:
        source.seek(extent.offset)
        left = extent.size
        while left and (chunk := source.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk


class _Window(io.RawIOBase):
    """A part of an archive as a file of its own."""

    def __init__(self, source: BinaryIO, extent: Extent) -> None:
        source.seek(extent.offset)
        self._source = source
        self._left = extent.size

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read on, up to the end of the part."""
        chunk = self._source.read(min(self._left, memoryview(buffer).nbytes))
        self._left -= len(chunk)
        memoryview(buffer)[: len(chunk)] = chunk
        return len(chunk)


def _gunzip(extent: Extent, name: str) -> Iterator[bytes]:
    with extent.path.open("rb") as source, gzip.GzipFile(fileobj=io.BufferedReader(_Window(source, extent))) as packed:
        while True:
            try:
                chunk = packed.read(CHUNK)
            except (OSError, EOFError, zlib.error) as error:
                raise ArchiveInvalid(name, f"it is damaged ({error}); export the image again.") from error
            if not chunk:
                return
            yield chunk


def _unzstd(extent: Extent, packed: Path, name: str) -> Iterator[bytes]:
    """Yield what a zstd stream holds; by the program, as the standard library reads it only from Python 3.14 on."""
    with packed.open("xb") as out:
        out.writelines(_chunks(extent))
    try:
        process = subprocess.Popen(
            ["zstd", "-dcq", packed], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise ToolMissing("zstd", "zstd") from error
    with process:  # leaving early closes the pipe, which ends the program
        assert process.stdout is not None
        while chunk := process.stdout.read(CHUNK):
            yield chunk
    packed.unlink()
    if process.returncode:
        raise ArchiveInvalid(name, "it is damaged, says zstd; export the image again.")
