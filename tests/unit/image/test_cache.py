"""The build cache and the lock: things are kept by content, and what is gone is fetched or named."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from cellmesh.image import BuildFailed, Package, ToolMissing, claims
from cellmesh.image.cache import BuildCache, default_cache
from cellmesh.image.lock import Lock
from cellmesh.image.program import run


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    """Give an empty cache."""
    return BuildCache(tmp_path / "cache")


def test_the_cache_follows_the_users_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_CACHE_HOME moves the cache; unset or empty is the system's."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/cellmesh")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_cache() == Path("/var/cache/cellmesh")


def test_a_package_is_kept_by_its_hash(cache: BuildCache, tmp_path: Path) -> None:
    """A kept package moves into the cache and is found by what it contains."""
    path = tmp_path / "a.deb"
    path.write_bytes(b"package")
    sha256 = cache.keep_package(path)
    assert sha256 == hashlib.sha256(b"package").hexdigest()
    kept = cache.package(sha256)
    assert kept is not None
    assert kept.read_bytes() == b"package"
    assert not path.exists()
    assert cache.package("0" * 64) is None


def test_what_failed_is_not_prepared(cache: BuildCache) -> None:
    """A half-filled directory never counts as ready; a filled one is filled once."""

    def fill() -> None:
        with cache.prepared("kind", "key") as (path, ready):
            assert not ready
            (path / "half").write_bytes(b"")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill()
    with cache.prepared("kind", "key") as (path, ready):
        assert not ready
        (path / "whole").write_bytes(b"x")
    with cache.prepared("kind", "key") as (path, ready):
        assert ready
        assert [entry.name for entry in path.iterdir()] == ["whole"]


def test_given_packages_that_are_here_need_no_network(cache: BuildCache, tmp_path: Path) -> None:
    """Packages of a recorded list that the cache has are taken as they are."""
    path = tmp_path / "a.deb"
    path.write_bytes(b"package")
    sha256 = cache.keep_package(path)
    package = Package(name="a", version="1", architecture="all", source="trixie/a", sha256=sha256)
    assert Lock(cache, deb_names=["a"]).packages([package]) == (package,)


def test_a_program_that_fails_is_quoted() -> None:
    """The error has the exit code and what the program said."""
    with pytest.raises(BuildFailed, match=r"at a step: sh ended with 3: too bad"):
        run(["sh", "-c", "echo too bad >&2; exit 3"], package="dash", step="a step")


def test_a_missing_program_names_its_package() -> None:
    """The error says what to install."""
    with pytest.raises(ToolMissing, match="install the package mmdebstrap"):
        run(["no-such-program-here"], package="mmdebstrap", step="a step")


BUILDER = """
import os, sys, time
from pathlib import Path
from cellmesh.image.cache import BuildCache
with BuildCache(Path(sys.argv[1])).prepared("kind", "key") as (path, ready):
    if not ready:
        (path / "half").write_bytes(b"")
        print("building", flush=True)
        if sys.argv[2] == "hang":
            time.sleep(600)
        (path / "half").rename(path / "whole")
"""


def build(cache: BuildCache, how: str = "") -> subprocess.Popen[bytes]:
    """Start a builder in a process of its own."""
    return subprocess.Popen([sys.executable, "-c", BUILDER, cache.root, how], stdout=subprocess.PIPE)


def test_processes_that_need_the_same_thing_build_it_once(cache: BuildCache) -> None:
    """Eight processes find nothing at the same time: one builds, and each ends well."""
    builders = [build(cache) for _ in range(8)]
    said = [builder.communicate()[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0] * 8
    assert sorted(said) == [b""] * 7 + [b"building\n"]
    assert [path.name for path in (cache.root / "kind" / "key").iterdir()] == ["whole"]


def test_a_killed_builder_leaves_nothing_to_the_next(cache: BuildCache) -> None:
    """What it began is not taken for finished, its lock is free, and its scratch directory is removed."""
    with build(cache, "hang") as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"building\n"
        killed.kill()
    assert list(cache.root.glob(".work-*")) != []
    with build(cache) as builder:
        assert builder.communicate()[0] == b"building\n"
    assert builder.returncode == 0
    assert list(cache.root.glob(".work-*")) == []


def test_without_the_lock_builders_disturb_each_other(cache: BuildCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where no lock is taken, the second of two builders can't publish and fails."""
    monkeypatch.setattr(claims.fcntl, "flock", lambda *_: None)

    def fill_twice() -> None:
        with cache.prepared("kind", "key") as (path, ready):
            assert not ready
            (path / "whole").write_bytes(b"")
            with BuildCache(cache.root).prepared("kind", "key") as (other, other_ready):
                assert not other_ready
                (other / "whole").write_bytes(b"")

    with pytest.raises(FileNotFoundError, match="new"):
        fill_twice()
