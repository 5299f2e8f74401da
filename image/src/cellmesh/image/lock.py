"""Which packages an image is made from: given, remembered, or looked up."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict

from cellmesh.image import debian, wheels
from cellmesh.image.cache import BuildCache
from cellmesh.image.errors import BuildFailed
from cellmesh.image.manifest import Package, canonical

KERNEL_IMAGE = re.compile(r"linux-image-\d.*")
"""The package the kernel's meta package stands for."""


class Lock:
    """The exact packages of a build, their files in the cache; `deb_names` and `wheel_names` are what is wanted."""

    def __init__(self, cache: BuildCache, *, deb_names: Sequence[str], wheel_names: Sequence[str] = ()) -> None:
        self._cache = cache
        self._deb_names = deb_names
        self._wheel_names = wheel_names

    def packages(self, given: Sequence[Package] | None = None, *, refresh: bool = False) -> tuple[Package, ...]:
        """Return `given`, else what was found last time unless `refresh`, else what is offered now.

        Raises BuildFailed if a given package is offered no more.
        """
        if given is not None:
            self._fetch(given)
            return tuple(given)
        pins = wheels.installed(self._wheel_names)
        wanted = {"suite": debian.SUITE, "debian": [*self._deb_names], "wheels": pins}
        with self._cache.exclusive("locks", hashlib.sha256(canonical(wanted)).hexdigest()) as path:
            if path.is_file() and not refresh:
                found = tuple(Package(**package) for package in json.loads(path.read_bytes())["packages"])
                self._fetch(found)
                return found
            found = debian.resolve(self._cache, self._deb_names, self._is_used)
            if pins:
                found += wheels.resolve(self._cache, pins)
            partial = path.with_name(f".{path.name}.new")
            partial.write_bytes(canonical({"packages": [asdict(package) for package in found]}))
            partial.replace(path)
            return found

    def _fetch(self, packages: Sequence[Package]) -> None:
        """Download what the cache lacks, by exact version."""
        lacking = [package for package in packages if self._cache.package(package.sha256) is None]
        debs = [f"{package.name}={package.version}" for package in lacking if not wheels.is_wheel(package)]
        if debs:
            debian.resolve(self._cache, debs, self._is_used)
        pins = [f"{package.name}=={package.version}" for package in lacking if wheels.is_wheel(package)]
        if pins:
            wheels.resolve(self._cache, pins)
        for package in lacking:
            if self._cache.package(package.sha256) is None:
                raise BuildFailed(
                    "packages",
                    f"{package.name} {package.version} with hash {package.sha256[:12]}… is no longer offered; "
                    "build again from the newest packages.",
                )

    def _is_used(self, name: str) -> bool:
        """Tell whether a Debian package was asked for; the rest only came along as dependencies."""
        return name in self._deb_names or KERNEL_IMAGE.fullmatch(name) is not None
