"""Which packages a guest image is made from: given, remembered, or looked up."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict

from cellmesh.image import debian, wheels
from cellmesh.image.cache import BuildCache
from cellmesh.image.errors import BuildFailed
from cellmesh.image.manifest import Package, canonical
from cellmesh.image.root import DEBIAN, WHEELS

KERNEL = "linux-image-cloud-amd64"
BUSYBOX = "busybox-static"
_KERNEL_IMAGE = re.compile(r"linux-image-\d.*")


class Lock:
    """The exact packages of a build, their files in the cache."""

    def __init__(self, cache: BuildCache) -> None:
        self._cache = cache

    def packages(self, given: Sequence[Package] | None, *, refresh: bool) -> tuple[Package, ...]:
        """Return `given`, else what was found last time unless `refresh`, else what is offered now.

        Raises BuildFailed if a given package is offered no more.
        """
        if given is not None:
            self._fetch(given)
            return tuple(given)
        pins = wheels.installed(WHEELS)
        wanted = {"suite": debian.SUITE, "debian": [*DEBIAN, KERNEL, BUSYBOX], "wheels": pins}
        path = self._cache.file("locks", hashlib.sha256(canonical(wanted)).hexdigest())
        if path.is_file() and not refresh:
            found = tuple(Package(**package) for package in json.loads(path.read_bytes())["packages"])
            self._fetch(found)
            return found
        found = debian.resolve(self._cache, (*DEBIAN, KERNEL, BUSYBOX), is_used) + wheels.resolve(self._cache, pins)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(canonical({"packages": [asdict(package) for package in found]}))
        partial.replace(path)
        return found

    def _fetch(self, packages: Sequence[Package]) -> None:
        """Download what the cache lacks, by exact version."""
        lacking = [package for package in packages if self._cache.package(package.sha256) is None]
        pins = [package for package in lacking if package.source != wheels.SOURCE]
        if pins:
            debian.resolve(self._cache, [f"{package.name}={package.version}" for package in pins], is_used)
        if len(pins) < len(lacking):
            named = [f"{package.name}=={package.version}" for package in lacking if package.source == wheels.SOURCE]
            wheels.resolve(self._cache, named)
        for package in lacking:
            if self._cache.package(package.sha256) is None:
                raise BuildFailed(
                    "packages",
                    f"{package.name} {package.version} with hash {package.sha256[:12]}… is no longer offered; "
                    "build again from the newest packages.",
                )


def is_used(name: str) -> bool:
    """Tell whether files of this Debian package go into an image; the rest only came along as dependencies."""
    return name in DEBIAN or name == BUSYBOX or _KERNEL_IMAGE.fullmatch(name) is not None
