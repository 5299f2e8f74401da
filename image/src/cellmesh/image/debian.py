"""Debian packages: find what the suite offers today, keep the files by content, read them into a tree."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from cellmesh.image.cache import BuildCache
from cellmesh.image.errors import BuildFailed
from cellmesh.image.manifest import Package
from cellmesh.image.program import run
from cellmesh.image.tarball import add_tar, members
from cellmesh.image.tree import Tree

SUITE = "trixie"
ARCHITECTURE = "amd64"


def resolve(cache: BuildCache, wanted: Iterable[str], keep: Callable[[str], bool]) -> tuple[Package, ...]:
    """Download `wanted` (`name` or `name=version`) and what they depend on; return those whose name `keep` takes.

    mmdebstrap is asked for the download only, without maintainer scripts; it finds the mirror and checks signatures.
    """
    with cache.scratch() as work:
        target = work / "root"
        argv = [
            "mmdebstrap",
            "--quiet",
            "--variant=extract",
            f"--architectures={ARCHITECTURE}",
            "--skip=essential/unlink,cleanup/apt,cleanup/reproducible",
            f"--include={','.join(wanted)}",
            SUITE,
            str(target),
        ]
        run(argv, package="mmdebstrap", step="downloading packages")
        archives = sorted((target / "var/cache/apt/archives").glob("*.deb"))
        return tuple(_kept(cache, path) for path in archives if keep(path.name.split("_")[0]))


def _kept(cache: BuildCache, path: Path) -> Package:
    """Describe a package file and move it into the cache."""
    shown = "${Package}\n${Version}\n${Architecture}\n${source:Package}"
    fields = run(["dpkg-deb", f"--showformat={shown}", "--show", path], package="dpkg", step="reading packages")
    name, version, architecture, source = fields.decode().split("\n")
    sha256 = cache.keep_package(path)
    return Package(
        name=name, version=version, architecture=architecture, source=f"{SUITE}/{source or name}", sha256=sha256
    )


def unpack(tree: Tree, cache: BuildCache, package: Package, spool: Path) -> None:
    """Add the files of `package` to `tree`; its unpacked archive stays in `spool` as long as the tree is used."""
    path = cache.package(package.sha256)
    if path is None:
        raise BuildFailed("unpacking", f"the file of package {package.name} is gone from the cache; start again.")
    tar = spool / f"{package.name}.tar"
    with tar.open("wb") as out:
        run(["dpkg-deb", "--fsys-tarfile", path], package="dpkg", step="unpacking", stdout=out)
    add_tar(tree, members(tar, package.name), tar)
