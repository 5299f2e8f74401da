"""Unpack what is compressed, within bounds that are checked before each piece is written."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cellmesh.image.errors import ArchiveInvalid, ToolMissing
from cellmesh.image.limits import FREE_UNPACKED, MAX_RATIO, MAX_UNPACKED
from cellmesh.image.tree import Extent

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK = 1 << 20
LZMA_MEMORY = 256 << 20
"""What unpacking xz may take in bytes; its highest preset takes 65 MiB."""
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
XZ_MAGIC = b"\xfd7zXZ\0"
BZIP2_MAGIC = b"BZh"
MAGICS = (GZIP_MAGIC, ZSTD_MAGIC, XZ_MAGIC, BZIP2_MAGIC)


class Allowance:
    """How many bytes may still be unpacked from an archive; grows with what the archive holds."""

    def __init__(self) -> None:
        self._left = FREE_UNPACKED
        self._in_all = MAX_UNPACKED

    def grow(self, packed: int) -> None:
        """Add what `packed` bytes may unpack to."""
        self._left += packed * MAX_RATIO

    def spend(self, size: int, name: str) -> None:
        """Take `size` bytes; raises ArchiveInvalid before they are written."""
        self._left -= size
        self._in_all -= size
        if self._in_all < 0:
            raise ArchiveInvalid(name, f"unpacked it has more than {MAX_UNPACKED} bytes.")
        if self._left < 0:
            raise ArchiveInvalid(
                name, f"it swells to more than {MAX_RATIO} times its size (and {FREE_UNPACKED} bytes); it is refused."
            )


def is_packed(extent: Extent) -> bool:
    """Tell whether a part is compressed in a way that is known here."""
    return next(chunks(extent), b"").startswith(MAGICS)


def unpack(extent: Extent, target: Path, allowance: Allowance, name: str) -> str:
    """Write a part uncompressed (gzip, zstd, xz, bzip2 or plain, by its first bytes) to `target`; return its SHA-256.

    `allowance` grows by the part's size.
    """
    allowance.grow(extent.size)
    total = hashlib.sha256()
    with target.open("xb") as out:
        for chunk in _plain_chunks(extent, target, name):
            allowance.spend(len(chunk), name)
            total.update(chunk)
            out.write(chunk)
    return total.hexdigest()


def chunks(extent: Extent) -> Iterator[bytes]:
    """Yield the bytes of a part as they are."""
    with extent.path.open("rb") as source:
        source.seek(extent.offset)
        left = extent.size
        while left and (chunk := source.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk


def _plain_chunks(extent: Extent, target: Path, name: str) -> Iterator[bytes]:
    start = next(chunks(extent), b"")
    if start.startswith(ZSTD_MAGIC):
        return _unzstd(extent, target.with_name(f"{target.name}.zst"), name)
    if start.startswith(XZ_MAGIC):
        return _unxz(extent, name)
    if start.startswith((GZIP_MAGIC, BZIP2_MAGIC)):
        return _unzip(extent, name, is_gzip=start.startswith(GZIP_MAGIC))
    return chunks(extent)


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


def _damaged(name: str, why: object) -> ArchiveInvalid:
    return ArchiveInvalid(name, f"it is damaged ({why}); export the image again.")


def _unzip(extent: Extent, name: str, *, is_gzip: bool) -> Iterator[bytes]:
    with extent.path.open("rb") as source:
        window = io.BufferedReader(_Window(source, extent))
        with gzip.GzipFile(fileobj=window) if is_gzip else bz2.BZ2File(window) as packed:
            while True:
                try:
                    chunk = packed.read(CHUNK)
                except (OSError, EOFError, ValueError, zlib.error) as error:
                    raise _damaged(name, error) from error
                if not chunk:
                    return
                yield chunk


def _unxz(extent: Extent, name: str) -> Iterator[bytes]:
    """Yield what an xz file holds: one stream or several, with zeros after them."""
    stream: lzma.LZMADecompressor | None = None
    for packed in chunks(extent):
        rest = packed
        while rest or (stream is not None and not stream.needs_input):
            if stream is None:
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                stream = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=LZMA_MEMORY)
            try:
                yield stream.decompress(rest, max_length=CHUNK)
            except (lzma.LZMAError, EOFError) as error:
                raise _damaged(name, error) from error
            rest = stream.unused_data
            if stream.eof:
                stream = None
    if stream is not None:
        raise _damaged(name, "it ends early")


def _unzstd(extent: Extent, packed: Path, name: str) -> Iterator[bytes]:
    """Yield what a zstd stream holds; by the program, as the standard library reads it only from Python 3.14 on."""
    with packed.open("xb") as out:
        out.writelines(chunks(extent))
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
        raise _damaged(name, "says zstd")
