"""A file tree in memory: what a root file system will hold, before a byte of it is written.

Archives are never unpacked on the host: they only shape this tree, so no path or link in one can reach a host file.
A time is in seconds since 1970; None is the time of the whole image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cellmesh.image.errors import InvalidImagePath

MAX_LINKS = 40  # as the kernel's MAXSYMLINKS
MAX_NAME = 255
MAX_TARGET = 4095
MAX_DEPTH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A stretch of a file on the host, in bytes."""

    path: Path
    offset: int
    size: int


Content = bytes | Extent


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
        return self.content.size if isinstance(self.content, Extent) else len(self.content)


@dataclass(slots=True, kw_only=True, eq=False)
class Symlink:
    """A symbolic link."""

    target: str
    uid: int = 0
    gid: int = 0
    mtime: int | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Directory:
    """A directory and what lies in it."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int | None = None
    children: dict[str, Node] = field(default_factory=dict)


Node = File | Symlink | Directory


def split(path: str) -> list[str]:
    """Return the parts of a path of an archive; refuses what climbs out or cannot be a name."""
    parts = [part for part in path.split("/") if part not in {"", "."}]
    for part in parts:
        if part == "..":
            raise InvalidImagePath(path, "it has a '..'")
        if "\0" in part or len(os.fsencode(part)) > MAX_NAME:
            raise InvalidImagePath(path, "a part of it is no file name")
    return parts


class Tree:
    """A root directory, with lookups that follow links the way the kernel would below a chroot."""

    def __init__(self) -> None:
        self.root = Directory()

    def directory(self, path: str, *, create: bool = True) -> Directory | None:
        """Return the directory at `path`, following links inside the root; makes missing ones if `create`."""
        stack = [self.root]
        pending = split(path)[::-1]
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
                node = stack[-1].children[part] = Directory()
            if isinstance(node, Symlink):
                links += 1
                if links > MAX_LINKS:
                    raise InvalidImagePath(path, "it leads through too many links")
                if node.target.startswith("/"):
                    del stack[1:]
                pending.extend(part for part in node.target.split("/")[::-1] if part not in {"", "."})
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
                _adopt(self.root, node)
                return
            raise InvalidImagePath(path, "the root must be a directory")
        parent = self.directory("/".join(parts[:-1]))
        assert parent is not None
        there = parent.children.get(parts[-1])
        if isinstance(there, Directory) and isinstance(node, Directory) and not node.children:
            _adopt(there, node)
        else:
            parent.children[parts[-1]] = node

    def remove(self, path: str) -> None:
        """Remove what lies at `path`, if anything does."""
        parts = split(path)
        parent = self.directory("/".join(parts[:-1]), create=False) if parts else None
        if parent is not None:
            parent.children.pop(parts[-1], None)


def _adopt(there: Directory, node: Directory) -> None:
    there.mode, there.uid, there.gid, there.mtime = node.mode, node.uid, node.gid, node.mtime


def walk(directory: Directory, prefix: str = "") -> Iterator[tuple[str, Node]]:
    """Yield every path below `directory` and its node, parents first, in byte order of names."""
    for name in sorted(directory.children, key=os.fsencode):
        node = directory.children[name]
        yield prefix + name, node
        if isinstance(node, Directory):
            yield from walk(node, f"{prefix}{name}/")


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
    with content.path.open("rb") as source:
        source.seek(content.offset)
        return source.read(content.size)
