"""What an image says of itself: the manifest whose hash is the image's digest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from cellmesh.image.cache import sha256_of
from cellmesh.image.errors import ImageCorrupt, InvalidDigest

SCHEMA = 1
SOURCE_DATE_EPOCH = 1_750_000_000  # the time of whatever has none of its own; in seconds, any constant would do
MANIFEST = "manifest.json"
MAX_MANIFEST = 4 << 20
DEFAULT_STOP_SIGNAL = 15
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file of an image; `size` in bytes, `release` for a kernel only."""

    file: str
    sha256: str
    size: int
    release: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package a guest image is made from; `source` says where it came from, `sha256` is of the package's file."""

    name: str
    version: str
    architecture: str
    source: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerConfig:
    """How a container image wants to be run; `stop_signal` is the number of the signal that asks it to end."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = "/"
    user: str = ""
    exposed_ports: tuple[str, ...] = ()
    stop_signal: int = DEFAULT_STOP_SIGNAL


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSource:
    """Where a container image was imported from; `digest` is of its manifest there."""

    format: Literal["oci", "docker-archive", "dir"]
    digest: str
    reference: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestImage:
    """A kernel, what loads its modules, and the root with the agent."""

    digest: str
    path: Path
    kernel: Path
    initramfs: Path
    rootfs: Path
    cmdline: str
    kernel_release: str
    agent_version: str
    source_date_epoch: int
    packages: tuple[Package, ...]
    files: tuple[StoredFile, ...]

    @property
    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerImage:
    """A container's root file system and how to run it."""

    digest: str
    path: Path
    rootfs: Path
    config: ContainerConfig
    source: ContainerSource
    files: tuple[StoredFile, ...]

    @property
    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(file.size for file in self.files)


Image = GuestImage | ContainerImage


def check_digest(digest: str) -> str:
    """Return the hex part of a digest; raises InvalidDigest."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidDigest(digest)
    return digest.removeprefix("sha256:")


def canonical(document: Mapping[str, object]) -> bytes:
    """Return the one way to write `document` as JSON."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"


def digest_of(manifest: bytes) -> str:
    """Return the digest a manifest gives its image."""
    return "sha256:" + hashlib.sha256(manifest).hexdigest()


def describe(path: Path, *, release: str | None = None) -> StoredFile:
    """Return name, hash and size of a draft's file."""
    return StoredFile(file=path.name, sha256=sha256_of(path), size=path.stat().st_size, release=release)


def guest_manifest(
    files: Mapping[str, StoredFile], *, cmdline: str, agent_version: str, epoch: int, packages: tuple[Package, ...]
) -> bytes:
    """Return the manifest of a guest image whose `files` are kernel, initramfs and rootfs."""
    return canonical(
        {
            "schema": SCHEMA,
            "kind": "guest",
            **{part: _present(file) for part, file in files.items()},
            "cmdline": cmdline,
            "agent_version": agent_version,
            "source_date_epoch": epoch,
            "packages": [asdict(package) for package in sorted(packages, key=lambda package: package.name)],
        }
    )


def container_manifest(rootfs: StoredFile, config: ContainerConfig, source: ContainerSource) -> bytes:
    """Return the manifest of a container image."""
    return canonical(
        {
            "schema": SCHEMA,
            "kind": "container",
            "rootfs": _present(rootfs),
            "config": asdict(config),
            "source": asdict(source),
        }
    )


def decode(path: Path, data: bytes) -> Image:
    """Return the image that lies in directory `path`; raises ImageCorrupt if `data` is no manifest of ours."""
    digest = digest_of(data)
    try:
        document = json.loads(data)
        if document["schema"] != SCHEMA:
            raise ImageCorrupt(digest, f"its manifest has schema {document['schema']}, known is {SCHEMA}")
        if document["kind"] == "guest":
            return _guest(digest, path, document)
        if document["kind"] == "container":
            return _container(digest, path, document)
    except (ValueError, KeyError, TypeError) as error:
        raise ImageCorrupt(digest, f"its manifest cannot be read ({error})") from error
    raise ImageCorrupt(digest, f"its kind is {document['kind']!r}")


def _present(file: StoredFile) -> dict[str, object]:
    return {name: value for name, value in asdict(file).items() if value is not None}


def _guest(digest: str, path: Path, document: dict[str, object]) -> GuestImage:
    files = {part: _file(document[part]) for part in ("kernel", "initramfs", "rootfs")}
    packages = _typed(document["packages"], list)
    return GuestImage(
        digest=digest,
        path=path,
        kernel=path / files["kernel"].file,
        initramfs=path / files["initramfs"].file,
        rootfs=path / files["rootfs"].file,
        cmdline=_typed(document["cmdline"], str),
        kernel_release=files["kernel"].release or "",
        agent_version=_typed(document["agent_version"], str),
        source_date_epoch=_typed(document["source_date_epoch"], int),
        packages=tuple(Package(**package) for package in packages),
        files=tuple(files.values()),
    )


def _container(digest: str, path: Path, document: dict[str, object]) -> ContainerImage:
    rootfs = _file(document["rootfs"])
    config = _typed(document["config"], dict)
    lists = {name: tuple(config[name]) for name in ("entrypoint", "cmd", "env", "exposed_ports")}
    return ContainerImage(
        digest=digest,
        path=path,
        rootfs=path / rootfs.file,
        config=ContainerConfig(
            working_dir=config["working_dir"],
            user=config["user"],
            # Images of earlier releases do not have it.
            stop_signal=_typed(config.get("stop_signal", DEFAULT_STOP_SIGNAL), int),
            **lists,
        ),
        source=ContainerSource(**_typed(document["source"], dict)),
        files=(rootfs,),
    )


def _file(value: object) -> StoredFile:
    file = StoredFile(**_typed(value, dict))
    if "/" in file.file or file.file in {"", ".", ".."}:
        raise ValueError(f"{file.file!r} is no file name")
    return file


def _typed(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value
