"""Write a tree as an EROFS image: uncompressed, byte for byte a function of the tree.

Why not mkfs.erofs: it packs a directory of the host, so archives would first have to be unpacked there, as root to keep
owners; and its output depends on its version. Compression is left out: unpacking pages costs more than reading them.
The format: https://docs.kernel.org/filesystems/erofs.html and fs/erofs/erofs_fs.h of Linux.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cellmesh.image.errors import ImageError
from cellmesh.image.tree import Directory, Dropped, Extent, File, Kept, Sparse, Symlink

BLOCK = 4096
SLOT = 32  # an inode's number is its place in units of this
SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
SUPERBLOCK_OFFSET = 1024
MAGIC = 0xE0F5E1E2
INODE = struct.Struct("<HHHHQIIIIQII16x")  # the extended form: 32-bit owners
DIRENT = struct.Struct("<QHBx")
PLAIN, INLINE = 0, 2
NO_BLOCK = 0xFFFFFFFF
FILE_TYPES = {File: 1, Directory: 2, Symlink: 7}
COPY = 1 << 20


class _Inode:
    """A node with its place in the image."""

    __slots__ = ("block", "inline", "links", "names", "nid", "node", "parent", "size")

    def __init__(self, node: Kept, parent: _Inode | None) -> None:
        self.node = node
        self.parent = parent or self
        self.links = 0
        self.nid = 0
        self.block = NO_BLOCK
        self.names: list[tuple[bytes, _Inode]] = []
        self.size = 0
        self.inline = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written."""

    inodes: int
    size: int


def write_erofs(
    root: Directory, target: Path, *, uuid: bytes, timestamp: int, on_block: Callable[[int, int], None] | None = None
) -> Written:
    """Write `root` to `target`; `timestamp` (seconds) is for files without one, `on_block` hears bytes done, in all."""
    inodes = _number(root)
    metadata_end = _place(inodes)
    end = _assign_blocks(inodes, metadata_end)
    with target.open("xb") as out:
        out.write(bytes(SUPERBLOCK_OFFSET))
        out.write(_superblock(inodes, uuid, timestamp, end))
        for number, inode in enumerate(inodes, 1):
            out.write(bytes(inode.nid * SLOT - out.tell()))
            out.write(_inode(inode, number, timestamp))
            if inode.inline:
                _copy_out(inode, out, inode.size - inode.inline, inode.inline)
        for inode in inodes:
            if inode.block != NO_BLOCK:
                out.write(bytes(inode.block * BLOCK - out.tell()))
                _copy_out(inode, out, 0, inode.size - inode.inline)
                if on_block is not None:
                    on_block(out.tell(), end)
        out.truncate(end)
    return Written(inodes=len(inodes), size=end)


def _number(root: Directory) -> list[_Inode]:
    """Return every node once, the root first, each directory before what lies in it."""
    first = _Inode(root, None)
    inodes = [first]
    seen: dict[int, _Inode] = {}
    pending = [first]
    while pending:
        here = pending.pop()
        assert isinstance(here.node, Directory)
        here.links = 2
        for name, node in sorted((os.fsencode(name), node) for name, node in here.node.children.items()):
            if isinstance(node, Dropped):
                continue
            inode = seen.get(id(node))
            if inode is None:
                inode = seen[id(node)] = _Inode(node, here)
                inodes.append(inode)
                if isinstance(node, Directory):
                    here.links += 1
                    pending.append(inode)
            inode.links += 0 if isinstance(node, Directory) else 1
            here.names.append((name, inode))
        here.names = sorted([*here.names, (b".", here), (b"..", here.parent)], key=lambda entry: entry[0])
        here.size = sum(BLOCK for _ in _blocks(here.names))
    for inode in inodes:
        inode.size = _size(inode)
    return inodes


def _size(inode: _Inode) -> int:
    """Return the bytes an inode's data take."""
    if isinstance(inode.node, File):
        return inode.node.size
    if isinstance(inode.node, Symlink):
        return len(os.fsencode(inode.node.target))
    *full, last = _blocks(inode.names)
    return len(full) * BLOCK + sum(DIRENT.size + len(name) for name, _ in last)


def _blocks(names: list[tuple[bytes, _Inode]]) -> Iterator[list[tuple[bytes, _Inode]]]:
    """Part a directory's sorted entries into blocks."""
    block: list[tuple[bytes, _Inode]] = []
    used = 0
    for entry in names:
        need = DIRENT.size + len(entry[0])
        if used + need > BLOCK:
            yield block
            block, used = [], 0
        block.append(entry)
        used += need
    yield block


def _place(inodes: list[_Inode]) -> int:
    """Give each inode its number, its last part beside it where that fits in one block; return the end in bytes."""
    position = SUPERBLOCK_OFFSET + SUPERBLOCK.size
    for inode in inodes:
        tail = inode.size % BLOCK
        inode.inline = tail if INODE.size + tail <= BLOCK else 0
        position = -(-position // SLOT) * SLOT
        if position % BLOCK + INODE.size + inode.inline > BLOCK:
            position = -(-position // BLOCK) * BLOCK
        inode.nid = position // SLOT
        position += INODE.size + inode.inline
    return position


def _assign_blocks(inodes: list[_Inode], metadata_end: int) -> int:
    """Give each inode with data outside its slot its blocks; return the image's length in bytes."""
    block = -(-metadata_end // BLOCK)
    for inode in inodes:
        outside = inode.size - inode.inline
        if outside:
            inode.block = block
            block += -(-outside // BLOCK)
    if block >= NO_BLOCK:
        raise ImageError("The image would be larger than EROFS can hold (16 TiB); make it smaller.")
    return block * BLOCK


def _superblock(inodes: list[_Inode], uuid: bytes, timestamp: int, end: int) -> bytes:
    return SUPERBLOCK.pack(
        MAGIC, 0, 0, BLOCK.bit_length() - 1, 0, inodes[0].nid, len(inodes), timestamp, 0, end // BLOCK, 0, 0, uuid, b"",
        0, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip


def _inode(inode: _Inode, number: int, timestamp: int) -> bytes:
    node = inode.node
    if isinstance(node, Symlink):
        mode = stat.S_IFLNK | 0o777
    else:
        mode = node.mode & 0o7777 | (stat.S_IFDIR if isinstance(node, Directory) else stat.S_IFREG)
    layout = INLINE if inode.inline else PLAIN
    time = timestamp if node.mtime is None else node.mtime
    return INODE.pack(
        1 | layout << 1, 0, mode, 0, inode.size, inode.block, number, node.uid, node.gid, time, 0, inode.links
    )


def _copy_out(inode: _Inode, out: BinaryIO, start: int, size: int) -> None:
    """Write `size` bytes of an inode's data from `start`."""
    node = inode.node
    if isinstance(node, Directory):
        out.write(_directory(inode)[start : start + size])
    elif isinstance(node, Symlink):
        out.write(os.fsencode(node.target)[start : start + size])
    elif isinstance(node.content, bytes):
        out.write(node.content[start : start + size])
    elif isinstance(node.content, Sparse):
        _copy_sparse(node.content, out, start, size)
    else:
        _copy_extent(node.content, out, start, size)


def _copy_sparse(content: Sparse, out: BinaryIO, start: int, size: int) -> None:
    """Write the parts and go over what is between them, which leaves holes in the image's file too."""
    base = out.tell() - start
    for offset, part in content.parts:
        first, last = max(start, offset), min(start + size, offset + part.size)
        if first < last:
            out.seek(base + first)
            _copy_extent(part, out, first - offset, last - first)
    out.seek(base + start + size)


def _copy_extent(extent: Extent, out: BinaryIO, start: int, size: int) -> None:
    with extent.path.open("rb") as source:
        source.seek(extent.offset + start)
        while size:
            chunk = source.read(min(COPY, size))
            if not chunk:
                raise ImageError(f"{extent.path} became shorter while it was read; start again.")
            out.write(chunk)
            size -= len(chunk)


def _directory(inode: _Inode) -> bytes:
    data = bytearray()
    for block in _blocks(inode.names):
        data.extend(bytes(-len(data) % BLOCK))
        offset = DIRENT.size * len(block)
        for name, entry in block:
            data.extend(DIRENT.pack(entry.nid, offset, FILE_TYPES[type(entry.node)]))
            offset += len(name)
        data.extend(b"".join(name for name, _ in block))
    return bytes(data)
