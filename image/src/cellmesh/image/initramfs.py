"""The first root: busybox, a few kernel modules, and the script that finds the real root."""

from __future__ import annotations

import lzma
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from cellmesh.image.errors import BuildFailed
from cellmesh.image.tree import Directory, File, Kept, Symlink, Tree, read, walk

# What a cell needs and the cloud kernel has not built in; what these need in turn is read from the modules.
MODULES = ("virtio_blk", "erofs", "overlay", "quota_v2", "vmw_vsock_virtio_transport", "virtio-rng")
APPLETS = ("sh", "mount", "umount", "insmod", "switch_root", "usleep")
_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")
MODULE_SUFFIX = ".ko.xz"


def build_initramfs(kernel: Tree, release: str, busybox: File) -> bytes:
    """Return the archive for the modules of `release` in `kernel`; uncompressed, as that starts soonest."""
    script = Path(__file__).with_name("boot") / "initramfs-init"
    tree = Tree()
    for name in ("bin", "dev", "modules", "root", "sys"):
        tree.directory(name)
    tree.put("init", File(content=script.read_bytes(), mode=0o755))
    tree.put("bin/busybox", File(content=read(busybox.content), mode=0o755))
    for applet in APPLETS:
        tree.put(f"bin/{applet}", Symlink(target="busybox"))
    modules = dict(load_order(kernel, release))
    for name, content in modules.items():
        tree.put(f"modules/{name}.ko", File(content=content))
    tree.put("modules/order", File(content="".join(f"{name}\n" for name in modules).encode()))
    return b"".join(_cpio(tree.root))


def load_order(kernel: Tree, release: str, wanted: Iterable[str] = MODULES) -> Iterator[tuple[str, bytes]]:
    """Yield each module and what it depends on, unpacked, dependencies first."""
    modules = kernel.directory(f"usr/lib/modules/{release}", create=False)
    if modules is None:
        raise BuildFailed("initramfs", f"the kernel package has no modules of {release}.")
    files = {
        path.rpartition("/")[2].removesuffix(MODULE_SUFFIX).replace("-", "_"): node
        for path, node in walk(modules)
        if isinstance(node, File) and path.endswith(MODULE_SUFFIX)
    }
    done: set[str] = set()

    def visit(name: str) -> Iterator[tuple[str, bytes]]:
        if name in done:
            return
        done.add(name)
        if name not in files:
            raise BuildFailed("initramfs", f"the kernel package has no module {name}.")
        content = lzma.decompress(read(files[name].content))
        depends = _DEPENDS.search(content)
        for other in depends[1].decode().split(",") if depends and depends[1] else ():
            yield from visit(other.replace("-", "_"))
        yield name, content

    for name in wanted:
        yield from visit(name.replace("-", "_"))


def _cpio(root: Directory) -> Iterator[bytes]:
    """Yield `root` in the newc format (Documentation/driver-api/early-userspace/buffer-format.rst of Linux)."""
    for number, (path, node) in enumerate(walk(root), 1):
        yield from _member(number, path, node)
    yield from _member(0, "TRAILER!!!", None)


def _member(number: int, path: str, node: Kept | None) -> Iterator[bytes]:
    data, mode = b"", 0
    if isinstance(node, Directory):
        mode = stat.S_IFDIR | node.mode
    elif isinstance(node, Symlink):
        mode, data = stat.S_IFLNK | 0o777, os.fsencode(node.target)
    elif node is not None:
        mode, data = stat.S_IFREG | node.mode, read(node.content)
    name = os.fsencode(path) + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    yield header + bytes(-len(header) % 4)
    yield data + bytes(-len(data) % 4)
