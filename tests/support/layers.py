"""A second, simple merge of image layers, to compare with: every path in one dictionary, by the rules of overlayfs.

Sources: https://github.com/opencontainers/image-spec/blob/main/layer.md and Documentation/filesystems/overlayfs.rst. It
knows no trees: a layer is a list of operations on paths, and links are never followed, so generated layers have no path
through a link of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from support import oci

Kind = Literal["file", "directory", "link", "fifo", "whiteout", "opaque"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One entry of a layer: `path` of what it puts or hides, `text` is content or target."""

    kind: Kind
    path: str
    text: str = ""

    def entry(self) -> oci.Entry:
        """Return the tar entry."""
        parent, _, base = self.path.rpartition("/")
        inside = f"{parent}/" if parent else ""
        if self.kind == "whiteout":
            return oci.entry(f"{inside}.wh.{base}")
        if self.kind == "opaque":
            return oci.entry(f"{self.path}/.wh..wh..opq")
        if self.kind == "directory":
            return oci.directory(self.path)
        if self.kind == "link":
            return oci.link(self.path, self.text)
        if self.kind == "fifo":
            return oci.entry(self.path, type=b"6")
        return oci.entry(self.path, self.text.encode())


Paths = dict[str, tuple[str, str]]
"""Kind and text by path."""


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _cut(paths: Paths, path: str) -> None:
    """Forget a path and all below it."""
    for known in [known for known in paths if known == path or known.startswith(f"{path}/")]:
        del paths[known]


def is_sound(layer: Sequence[Operation]) -> bool:
    """Tell whether a tool could have written the layer: no path of it lies below something that is no directory."""
    kinds: dict[str, str] = {}
    for operation in layer:
        own = [*_above(operation.path), *([operation.path] if operation.kind == "opaque" else [])]
        for parent in own:
            if kinds.setdefault(parent, "directory") != "directory":
                return False
        if operation.kind not in {"whiteout", "opaque"} and kinds.setdefault(operation.path, operation.kind) != (
            operation.kind
        ):
            return False
    return True


def merged(layers: Sequence[Sequence[Operation]]) -> Paths:
    """Return what all layers make together: first each layer hides, then it puts, path by path."""
    result: Paths = {}
    for layer in layers:
        for operation in layer:
            if operation.kind == "whiteout":
                _cut(result, operation.path)
            elif operation.kind == "opaque":
                for known in [known for known in result if known.startswith(f"{operation.path}/")]:
                    del result[known]
        for operation in layer:
            is_mark = operation.kind == "opaque"
            for parent in [*_above(operation.path), *([operation.path] if is_mark else [])]:
                if result.get(parent, ("directory", ""))[0] != "directory":
                    _cut(result, parent)
                result.setdefault(parent, ("directory", ""))
            if operation.kind == "directory":
                if result.get(operation.path, ("directory", ""))[0] != "directory":
                    _cut(result, operation.path)
                result[operation.path] = ("directory", "")
            elif operation.kind not in {"whiteout", "opaque"}:
                _cut(result, operation.path)
                result[operation.path] = (operation.kind, operation.text)
    return {path: found for path, found in result.items() if found[0] != "fifo"}


def found_in(root: Path) -> Paths:
    """Return what lies below an unpacked root, in the same form."""
    found: Paths = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_dir():
            found[name] = ("directory", "")
        else:
            found[name] = ("file", path.read_text())
    return found
