"""A file tree in memory: what a root file system will hold, before a byte of it is written.

Archives are never unpacked on the host: they only shape this tree, so no path or link in one can reach a host file.
A time is in seconds since 1970; None is the time of the whole image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cellmesh.image.errors import ImageTooLarge, InvalidImagePath
from cellmesh.image.limits import MAX_DEPTH, MAX_ENTRIES, MAX_STEPS, MAX_TEXT

MAX_LINKS = 40  # as the kernel's MAXSYMLINKS
MAX_NAME = 255
MAX_TARGET = 4095


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A stretch of a file on the host, in bytes."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse:
    """The content of a file of `size` bytes that is zero but for its parts, each with its offset, in order."""

    size: int
    parts: tuple[tuple[int, Extent], ...]


Content = bytes | Extent | Sparse


@dataclass(slots=True, kw_only=True, eq=False)
class File:
    """A regular file; two names with the same object are hard links."""

    content: Content = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int | None = None

    @property
    def size(self) -> int:
        """Return the length in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.size


@dataclass(slots=True, kw_only=True, eq=False)
class Symlink:
    """A symbolic link."""

    target: str
    uid: int = 0
    gid: int = 0
    mtime: int | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Directory:
    """A directory and what lies in it.

    In the tree of one layer it also has what the layer hides of those below: all (`opaque`) or some names (`hidden`).
    An `implied` one has no entry of its own, it only lies on the way to another.
    """

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int | None = None
    children: dict[str, Node] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    opaque: bool = False
    implied: bool = False

    def adopt(self, other: Directory) -> None:
        """Take over mode, owner and time of `other`, not what lies in it."""
        self.mode, self.uid, self.gid, self.mtime = other.mode, other.uid, other.gid, other.mtime
        self.implied = False


@dataclass(slots=True, kw_only=True, eq=False)
class Dropped:
    """A device, FIFO or socket of a layer: it is not kept, but hides what lies at its place in a lower layer."""


Kept = File | Symlink | Directory
Node = Kept | Dropped


@dataclass(slots=True)
class Census:
    """What trees hold so far, bounded: nodes, bytes of names and targets, and names looked up."""

    entries: int = 0
    text: int = 0
    steps: int = 0

    def count(self, *, entries: int = 0, text: int = 0, steps: int = 0) -> None:
        """Add to the numbers; raises ImageTooLarge."""
        self.entries += entries
        self.text += text
        self.steps += steps
        for found, limit, what in (
            (self.entries, MAX_ENTRIES, "entries"),
            (self.text, MAX_TEXT, "bytes of names and links"),
            (self.steps, MAX_STEPS, "names to look up"),
        ):
            if found > limit:
                raise ImageTooLarge(what, limit)


def split(path: str) -> list[str]:
    """Return the parts of a path of an archive; refuses what climbs out or cannot be a name."""
    parts = [part for part in path.split("/") if part not in {"", "."}]
    for part in parts:
        if part == "..":
            raise InvalidImagePath(path, "it has a '..'")
        _check_name(part, path)
    return parts


def _check_name(part: str, path: str) -> None:
    if "\0" in part or len(os.fsencode(part)) > MAX_NAME:
        raise InvalidImagePath(path, "a part of it is no file name")


class Tree:
    """A root directory, with lookups that follow links the way the kernel would below a chroot."""

    def __init__(self, *, census: Census | None = None) -> None:
        self.root = Directory(implied=True)
        self.census = census or Census()

    def directory(self, path: str, *, create: bool = True) -> Directory | None:
        """Return the directory at `path`, following links inside the root; makes missing ones if `create`."""
        stack = [self.root]
        pending = split(path)[::-1]
        self.census.count(steps=len(pending))
        links = 0
        while pending:
            part = pending.pop()
            if part == "..":
                del stack[max(1, len(stack) - 1) :]
                continue
            node = stack[-1].children.get(part)
            if node is None:
                if not create:
                    return None
                _check_name(part, path)
                self.census.count(entries=1, text=len(part))
                node = stack[-1].children[part] = Directory(implied=True)
            if isinstance(node, Symlink):
                links += 1
                if links > MAX_LINKS:
                    raise InvalidImagePath(path, "it leads through too many links")
                if node.target.startswith("/"):
                    del stack[1:]
                led = [part for part in node.target.split("/")[::-1] if part not in {"", "."}]
                self.census.count(steps=len(led))
                pending.extend(led)
            elif isinstance(node, Directory):
                stack.append(node)
                if len(stack) > MAX_DEPTH:
                    raise InvalidImagePath(path, f"it is more than {MAX_DEPTH} directories deep")
            else:
                raise InvalidImagePath(path, f"{part!r} on the way is no directory")
        return stack[-1]

    def get(self, path: str) -> Node | None:
        """Return what lies at `path`, a last link itself and not its target, or None."""
        parts = split(path)
        if not parts:
            return self.root
        parent = self.directory("/".join(parts[:-1]), create=False)
        return None if parent is None else parent.children.get(parts[-1])

    def put(self, path: str, node: Node) -> None:
        """Place `node`, over whatever was there; a directory over a directory keeps what lies in it."""
        parts = split(path)
        if not parts:
            if isinstance(node, Directory):
                self.root.adopt(node)
                return
            raise InvalidImagePath(path, "the root must be a directory")
        parent = self.directory("/".join(parts[:-1]))
        assert parent is not None
        target = len(node.target) if isinstance(node, Symlink) else 0
        self.census.count(entries=1, text=len(parts[-1]) + target)
        there = parent.children.get(parts[-1])
        if isinstance(there, Directory) and isinstance(node, Directory) and not node.children:
            there.adopt(node)
        else:
            parent.children[parts[-1]] = node

    def remove(self, path: str) -> None:
        """Remove what lies at `path`, if anything does."""
        parts = split(path)
        parent = self.directory("/".join(parts[:-1]), create=False) if parts else None
        if parent is not None:
            parent.children.pop(parts[-1], None)


def walk(directory: Directory, prefix: str = "") -> Iterator[tuple[str, Kept]]:
    """Yield every path below `directory` and its node, parents first, in byte order of names."""
    pending: list[tuple[str, Kept]] = [(prefix, directory)]
    while pending:
        path, node = pending.pop()
        if node is not directory:
            yield path, node
        if isinstance(node, Directory):
            start = path if node is directory else f"{path}/"
            names = sorted(node.children, key=os.fsencode, reverse=True)
            children = ((start + name, node.children[name]) for name in names)
            pending.extend((below, child) for below, child in children if not isinstance(child, Dropped))


def prune(directory: Directory, unwanted: Callable[[str], bool]) -> None:
    """Remove every path below `directory` for which `unwanted` is true."""
    doomed = [path for path, _ in walk(directory) if unwanted(path)]
    tree = Tree()
    tree.root = directory
    for path in doomed:
        tree.remove(path)


def read(content: Content) -> bytes:
    """Return the bytes of a file's content."""
    if isinstance(content, bytes):
        return content
    if isinstance(content, Sparse):
        whole = bytearray(content.size)
        for offset, part in content.parts:
            whole[offset : offset + part.size] = read(part)
        return bytes(whole)
    with content.path.open("rb") as source:
        source.seek(content.offset)
        return source.read(content.size)
