"""Guest and container images: build, import, store, verify."""

from cellmesh.image.errors import (
    AmbiguousImage,
    ArchiveInvalid,
    BuildFailed,
    CredentialInImage,
    ImageCorrupt,
    ImageError,
    ImageNotFound,
    ImageTooLarge,
    InvalidDigest,
    InvalidImagePath,
    StoreFull,
    ToolMissing,
)
from cellmesh.image.guest import build_guest
from cellmesh.image.manifest import ContainerConfig, ContainerImage, ContainerSource, GuestImage, Package, StoredFile
from cellmesh.image.progress import Progress, silent
from cellmesh.image.store import Drift, ImageStore

__all__ = [
    "AmbiguousImage",
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
    "ImageTooLarge",
    "InvalidDigest",
    "InvalidImagePath",
    "Package",
    "Progress",
    "StoreFull",
    "StoredFile",
    "ToolMissing",
    "build_guest",
    "silent",
]
