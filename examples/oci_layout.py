"""Write a container image as an OCI layout (https://github.com/opencontainers/image-spec/blob/main/image-layout.md)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellmesh.image.tree import Directory, Symlink, Tree, read, walk

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CREATED = "2025-06-15T15:06:40Z"
EPOCH = 1_750_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A file named by its hash; kept in `path` where several layouts share it."""

    path: Path
    sha256: str
    size: int

    def descriptor(self, media_type: str) -> dict[str, object]:
        """Return how a document points at this blob."""
        return {"mediaType": media_type, "digest": f"sha256:{self.sha256}", "size": self.size}


def write_layer(tree: Tree, blobs: Path) -> Blob:
    """Write `tree` as an uncompressed layer; the same tree gives the same bytes."""
    partial = blobs / f".layer-{os.getpid()}"
    with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive:
        for path, node in walk(tree.root):
            member = tarfile.TarInfo(path)
            member.mtime = EPOCH if node.mtime is None else node.mtime
            member.uid, member.gid = node.uid, node.gid
            if isinstance(node, Directory):
                member.type, member.mode = tarfile.DIRTYPE, node.mode
                archive.addfile(member)
            elif isinstance(node, Symlink):
                member.type, member.linkname, member.mode = tarfile.SYMTYPE, node.target, 0o777
                archive.addfile(member)
            else:
                member.size, member.mode = node.size, node.mode
                archive.addfile(member, io.BytesIO(read(node.content)))
    with partial.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Blob(path=partial.rename(blobs / sha256), sha256=sha256, size=(blobs / sha256).stat().st_size)


def write_layout(target: Path, layers: Sequence[Blob], settings: Mapping[str, object], reference: str) -> None:
    """Write an image of `layers`, run as `settings` say, as a layout at `target`."""
    blobs = target / "blobs/sha256"
    blobs.mkdir(parents=True)
    for layer in layers:
        os.link(layer.path, blobs / layer.sha256)
    config = _document(
        blobs,
        {
            "created": CREATED,
            "architecture": "amd64",
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.sha256}" for layer in layers]},
        },
    )
    manifest = _document(
        blobs,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": [layer.descriptor(LAYER) for layer in layers],
        },
    )
    entry = {
        **manifest.descriptor(MANIFEST),
        "platform": {"os": "linux", "architecture": "amd64"},
        "annotations": {"org.opencontainers.image.ref.name": reference},
    }
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
    (target / "index.json").write_text(json.dumps(index, sort_keys=True))
    (target / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


def _document(blobs: Path, document: Mapping[str, object]) -> Blob:
    data = json.dumps(document, sort_keys=True).encode()
    sha256 = hashlib.sha256(data).hexdigest()
    (blobs / sha256).write_bytes(data)
    return Blob(path=blobs / sha256, sha256=sha256, size=len(data))
