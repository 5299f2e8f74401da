"""Guest and container images: build, import, store, verify."""

from cellmesh.image.errors import (
    ArchiveInvalid,
    BuildFailed,
    CredentialInImage,
    ImageCorrupt,
    ImageError,
    ImageNotFound,
    InvalidDigest,
    InvalidImagePath,
    ToolMissing,
)
from cellmesh.image.guest import build_guest
from cellmesh.image.manifest import ContainerConfig, ContainerImage, ContainerSource, GuestImage, Package, StoredFile
from cellmesh.image.progress import Progress, silent
from cellmesh.image.store import Drift, ImageStore

__all__ = [
    "ArchiveInvalid",
    "BuildFailed",
    "ContainerConfig",
    "ContainerImage",
    "ContainerSource",
    "CredentialInImage",
    "Drift",
    "GuestImage",
    "ImageCorrupt",
    "ImageError",
    "ImageNotFound",
    "ImageStore",
    "InvalidDigest",
    "InvalidImagePath",
    "Package",
    "Progress",
    "StoredFile",
    "ToolMissing",
    "build_guest",
    "silent",
]
