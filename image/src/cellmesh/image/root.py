"""The guest's root without the agent: loader, interpreter, crun, gRPC; prepared once per set of packages."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from cellmesh.image import debian, wheels
from cellmesh.image.cache import BuildCache
from cellmesh.image.manifest import Package, canonical
from cellmesh.image.program import run
from cellmesh.image.tree import Directory, Extent, File, Symlink, Tree, prune, read, walk

PREPARED = 2  # grows when the same packages shall give another root
PYTHON = "usr/bin/python3.13"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
STANDARD_LIBRARY = "usr/lib/python3.13"
MODULES = "usr/lib/cellmesh"
# Beginnings of paths, so a name also covers what starts with it.
UNWANTED_FILES = (
    "etc", "usr/bin/crun-", "usr/include/", "usr/sbin/", "usr/share/", "usr/lib/python3/", "usr/lib/systemd/",
    "usr/lib/tmpfiles.d", "usr/lib/valgrind",
    f"{LIBRARIES}/audit", f"{LIBRARIES}/gconv", f"{LIBRARIES}/libcrun.a", f"{LIBRARIES}/perl",
)  # fmt: skip
UNWANTED_MODULES = (
    "_pyrepl", "_sysconfigdata", "config-3.13", "curses", "dbm", "doctest", "ensurepip", "idlelib", "lib2to3", "pydoc",
    "sqlite3", "test", "tkinter", "turtle", "unittest", "venv", "wsgiref", "xmlrpc",
)  # fmt: skip
# Their libraries are left out: there is no TLS in the guest, and the interpreter has its own hashes.
UNWANTED_EXTENSIONS = (
    "_bz2", "_codecs_", "_crypt", "_ctypes_test", "_curses", "_dbm", "_hashlib", "_lzma", "_sqlite3", "_ssl", "_test",
    "_xxtest", "readline", "xxlimited", "xxsubtype",
)  # fmt: skip
UNWANTED = (
    *UNWANTED_FILES,
    *(f"{STANDARD_LIBRARY}/{name}" for name in UNWANTED_MODULES),
    *(f"{STANDARD_LIBRARY}/lib-dynload/{name}" for name in UNWANTED_EXTENSIONS),
)
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "usr/bin/python3": "python3.13"}
MOUNT_POINTS = ("data", "dev", "images", "proc", "root", "run", "sys", "tmp")
ETC = {
    "passwd": "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "hostname": "cell\n",
}


def prepared_root(cache: BuildCache, packages: Iterable[Package]) -> Path:
    """Return a directory with the root these packages give, every module of it compiled."""
    chosen = sorted(packages, key=lambda package: package.name)
    key = hashlib.sha256(canonical({"prepared": PREPARED, "sha256": [package.sha256 for package in chosen]}))
    with cache.prepared("roots", key.hexdigest()) as (directory, ready):
        if not ready:
            with cache.scratch() as spool:
                write_out(_assemble(cache, chosen, spool), directory)
            compile_modules(directory, directory / "usr/lib", "/usr/lib")
    return cache.file("roots", key.hexdigest())


def base_tree(directory: Path) -> Tree:
    """Return the tree of a prepared root, with the links and empty directories around it."""
    tree = Tree()
    for target, link in LINKS.items():
        if "/" not in target:
            tree.put(target, Symlink(target=link))
    add_directory(tree, directory, "")
    tree.put("usr/bin/python3", Symlink(target=LINKS["usr/bin/python3"]))
    for name in MOUNT_POINTS:
        tree.put(name, Directory())
    for name, text in ETC.items():
        tree.put(f"etc/{name}", File(content=text.encode()))
    return tree


def add_directory(tree: Tree, source: Path, prefix: str) -> None:
    """Add the files below a directory of ours, all owned by root."""
    for here, directories, names in os.walk(source):
        directories.sort()
        relative = (Path(prefix) / Path(here).relative_to(source)).as_posix()
        for name in sorted(names):
            path = Path(here, name)
            if path.is_symlink():
                tree.put(f"{relative}/{name}", Symlink(target=str(path.readlink())))
                continue
            status = path.stat()
            mode = 0o755 if status.st_mode & 0o100 else 0o644
            extent = Extent(path=path, offset=0, size=status.st_size)
            tree.put(f"{relative}/{name}", File(content=extent if extent.size else b"", mode=mode))


def write_out(tree: Tree, directory: Path) -> None:
    """Write a tree made of trusted packages below `directory`."""
    for path, node in walk(tree.root):
        target = directory / path
        if isinstance(node, Directory):
            target.mkdir()
        elif isinstance(node, Symlink):
            target.symlink_to(node.target)
        else:
            with target.open("xb") as out:
                out.write(read(node.content))
            target.chmod(node.mode)


def compile_modules(root: Path, directory: Path, shown: str) -> None:
    """Compile every module below `directory` for the guest's interpreter, to be read without looking at its source."""
    argv = ["-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
    run_python(root, [*argv, "-s", directory, "-p", shown, directory], step="compiling modules")


def bundle_modules(root: Path, modules: Path, bundle: Path) -> None:
    """Write the bytecode of all the agent imports, from a prepared root and from its own `modules`, into one file."""
    shown = {
        root / STANDARD_LIBRARY: f"/{STANDARD_LIBRARY}",
        root / MODULES: f"/{MODULES}",
        modules: f"/{MODULES}",
    }
    script = Path(__file__).with_name("boot") / "collect.py"
    places = [f"{directory}={name}" for directory, name in shown.items()]
    run_python(root, [script, bundle, *places], step="bundling modules")


def run_python(root: Path, arguments: Iterable[str | Path], *, step: str) -> None:
    """Run the guest's interpreter here, by the loader it was linked with: that needs neither chroot nor root rights."""
    loader = root / LIBRARIES / "ld-linux-x86-64.so.2"
    argv = [loader, "--library-path", root / LIBRARIES, root / PYTHON, "-S", "-s", "-B", *arguments]
    # The hash seed orders sets, which compiled code may hold.
    environment = {"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0", "PATH": os.defpath}
    run(argv, package="none", step=step, env=environment)


def _assemble(cache: BuildCache, packages: Iterable[Package], spool: Path) -> Tree:
    tree = Tree()
    for package in packages:
        if wheels.is_wheel(package):
            wheels.unpack(tree, cache, package, MODULES)
        else:
            debian.unpack(tree, cache, package, spool)
    prune(tree.root, lambda path: path.startswith(UNWANTED))
    return tree
