"""Read a tar archive into a tree, whatever the archive tries."""

from __future__ import annotations

import io
import math
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from cellmesh.image.errors import ArchiveInvalid
from cellmesh.image.limits import MAX_HEADER
from cellmesh.image.tree import MAX_TARGET, Directory, Dropped, Extent, File, Node, Sparse, Symlink, Tree

MAX_FILE_ID = 2**32 - 2
MAX_TIME = 2**40
MODE = 0o7777
HEADERS = 8
"""How many MAX_HEADER of headers one entry may have in all: names, attributes and the map of a sparse file."""
BLOCK = tarfile.BLOCKSIZE
END = 2 * BLOCK


class _Headers(io.RawIOBase):
    """A tar file for a reader of its headers: bounded in what is read for one entry, and never without an end.

    Some tools leave out the padding of the last file and the two empty blocks that end an archive.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.size = os.fstat(self._file.fileno()).st_size
        self._end = -(-self.size // BLOCK) * BLOCK + END
        self._position = 0
        self.left = 0
        self.name = path.name

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that a position can be chosen."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to `offset` from the start, which the headers name; it must lie in the file."""
        if whence != 0 or not 0 <= offset <= self._end:
            raise ArchiveInvalid(self.name, "an entry of it has a size that is not possible, or the end is missing.")
        self._position = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, zeros after the end; raises ArchiveInvalid beyond the bounds."""
        if not 0 <= size <= min(MAX_HEADER, self.left):
            raise ArchiveInvalid(self.name, f"an entry of it has more than {MAX_HEADER} bytes of header.")
        if self._position >= self._end and size:
            raise ArchiveInvalid(self.name, "a header of it has no end.")
        self.left -= size
        self._file.seek(self._position)
        data = self._file.read(size).ljust(min(size, self._end - self._position), b"\0")
        self._position += len(data)
        return data

    def block(self, offset: int) -> bytes:
        """Return the header at `offset`."""
        self._file.seek(offset)
        return self._file.read(BLOCK)

    def close(self) -> None:
        """Close the file below too."""
        self._file.close()
        super().close()


def members(path: Path, name: str) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of the uncompressed tar file at `path`, each with all of its data in the file.

    Raises ArchiveInvalid, in which `name` is what the user calls the archive.
    """
    with _Headers(path) as headers, _explained(name):
        headers.name = name
        if not headers.size:
            return
        headers.left = HEADERS * MAX_HEADER
        with tarfile.open(
            fileobj=headers, mode="r:", encoding="utf-8", errors="surrogateescape", bufsize=BLOCK
        ) as archive:
            # Not by iteration: it keeps every entry, and their number is the archive's.
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # typeshed lacks it
                _check_data(member, headers.size, name)
                yield member
                headers.left = HEADERS * MAX_HEADER
            if any(headers.block(archive.offset)):
                raise ArchiveInvalid(name, f"at byte {archive.offset} there is neither an entry nor its end.")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, UnicodeError, ValueError, OverflowError, IndexError, TypeError) as error:
        raise ArchiveInvalid(name, f"it is no sound tar archive ({error}).") from error


def _check_data(member: tarfile.TarInfo, end: int, name: str) -> None:
    stored = sum(size for _, size in _map(member)) if member.issparse() else member.size
    if member.size < 0 or (member.isreg() and not 0 <= member.offset_data <= member.offset_data + stored <= end):
        raise ArchiveInvalid(
            name,
            f"{member.name!r:.100} has {member.size} bytes, which the archive does not hold; it is cut off or wrong.",
        )


def node_of(member: tarfile.TarInfo, source: Path) -> Node:
    """Return what `member` puts into a tree; Dropped for what is never kept: devices, FIFOs, sockets.

    Extended attributes (and with them file capabilities) are dropped. Hard links are not decided here.
    """
    if not (0 <= member.uid <= MAX_FILE_ID and 0 <= member.gid <= MAX_FILE_ID and math.isfinite(member.mtime)):
        raise ArchiveInvalid(member.name, "its owner or its time is out of range.")
    mtime = min(max(int(member.mtime), 0), MAX_TIME)
    if member.isdir():
        return Directory(mode=member.mode & MODE, uid=member.uid, gid=member.gid, mtime=mtime)
    if member.issym():
        if not 0 < len(os.fsencode(member.linkname)) <= MAX_TARGET or "\0" in member.linkname:
            raise ArchiveInvalid(member.name, "the target of the link is no path.")
        return Symlink(target=member.linkname, uid=member.uid, gid=member.gid, mtime=mtime)
    if member.isreg():
        content: bytes | Extent | Sparse = b""
        if member.issparse():
            content = _sparse(member, source)
        elif member.size:
            content = Extent(path=source, offset=member.offset_data, size=member.size)
        return File(content=content, mode=member.mode & MODE, uid=member.uid, gid=member.gid, mtime=mtime)
    return Dropped()


def _map(member: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Return offset and size of each stretch of a sparse file that is in the archive."""
    return cast("list[tuple[int, int]]", member.sparse or [])


def _sparse(member: tarfile.TarInfo, source: Path) -> Sparse:
    """Return the content of a sparse file: its stretches follow each other in the archive, in the order of the map."""
    parts: list[tuple[int, Extent]] = []
    end, stored = 0, member.offset_data
    for offset, size in _map(member):
        if size < 0 or offset < end or offset + size > member.size:
            raise ArchiveInvalid(member.name, "the map of the sparse file is not in order.")
        if size:
            parts.append((offset, Extent(path=source, offset=stored, size=size)))
        end, stored = offset + size, stored + size
    return Sparse(size=member.size, parts=tuple(parts))


def link_target(tree: Tree, member: tarfile.TarInfo, below: Tree | None = None) -> Node:
    """Return what a hard link names, in `tree` or in the tree `below` it.

    A tool writes a hard link for anything that has two names, so symbolic links and devices have them too. Raises
    ArchiveInvalid for a directory, and if there is nothing of that name.
    """
    target = tree.get(member.linkname)
    if target is None and below is not None:
        target = below.get(member.linkname)
    if target is None or isinstance(target, Directory):
        raise ArchiveInvalid(member.name, f"it is a hard link to {member.linkname!r:.200}, which is no file before it.")
    return target


def add_tar(tree: Tree, entries: Iterable[tarfile.TarInfo], source: Path) -> None:
    """Add the entries of the uncompressed tar file at `source`."""
    for member in entries:
        node = link_target(tree, member) if member.islnk() else node_of(member, source)
        if not isinstance(node, Dropped):
            tree.put(member.name, node)
