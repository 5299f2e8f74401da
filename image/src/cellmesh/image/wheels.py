"""Python wheels for the guest's interpreter."""

from __future__ import annotations

import importlib.metadata
import stat
import sys
import zipfile
from collections.abc import Iterable

from cellmesh.image.cache import BuildCache
from cellmesh.image.errors import BuildFailed
from cellmesh.image.manifest import Package
from cellmesh.image.program import run
from cellmesh.image.tree import File, Tree

PYTHON = "3.13"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64")
SOURCE = "pypi"


def installed(names: Iterable[str]) -> tuple[str, ...]:
    """Return `name==version` as installed here, so guest and host speak through the same releases."""
    return tuple(f"{name}=={importlib.metadata.version(name)}" for name in names)


def is_wheel(package: Package) -> bool:
    """Tell a wheel from a Debian package."""
    return package.source == SOURCE


def resolve(cache: BuildCache, pins: Iterable[str]) -> tuple[Package, ...]:
    """Download exactly these `name==version` as wheels for the guest, without dependencies."""
    with cache.scratch() as work:
        platforms = [f"--platform={platform}" for platform in PLATFORMS]
        argv = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", *platforms),
            *("--dest", str(work), *pins),
        ]
        run(argv, package="python3-pip", step="downloading wheels")
        found = []
        for path in sorted(work.glob("*.whl")):
            name, version, *_, architecture = path.stem.split("-")
            sha256 = cache.keep_package(path)
            found.append(Package(name=name, version=version, architecture=architecture, source=SOURCE, sha256=sha256))
        return tuple(found)


def unpack(tree: Tree, cache: BuildCache, package: Package, prefix: str) -> None:
    """Add the modules of a wheel below `prefix`, without its metadata, stubs and tests."""
    path = cache.package(package.sha256)
    if path is None:
        raise BuildFailed("unpacking", f"the file of wheel {package.name} is gone from the cache; start again.")
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            top = info.filename.split("/")[0]
            if info.is_dir() or top.endswith((".dist-info", ".data")) or info.filename.endswith((".pyi", ".proto")):
                continue
            executable = stat.S_IMODE(info.external_attr >> 16) & 0o100
            tree.put(
                f"{prefix}/{info.filename}",
                File(content=archive.read(info), mode=0o755 if executable else 0o644),
            )
