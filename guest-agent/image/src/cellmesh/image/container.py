"""Import a container image: read an archive, apply its layers in memory, write the disk a cell mounts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cellmesh.image.archive import Archive, read_archive
from cellmesh.image.blobs import MAX_UNPACKED, open_blobs, unpack
from cellmesh.image.config import about, read_config
from cellmesh.image.erofs import write_erofs
from cellmesh.image.errors import ArchiveInvalid, CredentialInImage
from cellmesh.image.guard import credential_in
from cellmesh.image.layers import apply_layer
from cellmesh.image.manifest import SOURCE_DATE_EPOCH, container_manifest, describe
from cellmesh.image.progress import Progress
from cellmesh.image.tree import Directory, File, Tree

if TYPE_CHECKING:
    from cellmesh.image.store import ImageStore


def import_container(store: ImageStore, path: Path, *, progress: Progress) -> str:
    """Import the image at `path` into `store` and return its digest; see ImageStore.import_container."""
    with store.draft() as draft, tempfile.TemporaryDirectory(prefix=".spool-", dir=store.root) as name:
        spool = Path(name)
        with open_blobs(path, spool) as blobs:
            progress("reading", 0, 0)
            archive = read_archive(blobs)
            config = read_config(archive.config)
            found = credential_in(config.env, (*config.entrypoint, *config.cmd))
            if found is not None:
                raise CredentialInImage(found)
            tree = _flatten(archive, spool, progress)
        progress("writing", 0, 0)
        disk = Directory(
            children={
                "rootfs": tree.root,
                ".cellmesh": Directory(children={"config.json": File(content=about(config))}),
            }
        )
        identity = bytes.fromhex(archive.source.digest.removeprefix("sha256:"))[:16]
        write_erofs(
            disk,
            draft / "rootfs.erofs",
            uuid=identity,
            timestamp=SOURCE_DATE_EPOCH,
            on_block=lambda done, total: progress("writing", done, total),
        )
        return store.publish(draft, container_manifest(describe(draft / "rootfs.erofs"), config, archive.source))


def _flatten(archive: Archive, spool: Path, progress: Progress) -> Tree:
    """Return the tree all layers make together; their unpacked archives stay in `spool`."""
    tree = Tree()
    left = MAX_UNPACKED
    for number, layer in enumerate(archive.layers):
        progress("layers", number, len(archive.layers))
        unpacked = spool / f"layer-{number}"
        if unpack(layer.packed, unpacked, left, layer.name) != layer.diff_id:
            raise ArchiveInvalid(layer.name, "unpacked it does not have the hash that the image's configuration says.")
        left -= unpacked.stat().st_size
        apply_layer(tree, unpacked, layer.name)
    progress("layers", len(archive.layers), len(archive.layers))
    return tree
