"""Import a container image: read an archive, apply its layers in memory, write the disk a cell mounts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cellmesh.image.archive import Archive, read_archive
from cellmesh.image.blobs import open_blobs
from cellmesh.image.config import about, read_config
from cellmesh.image.erofs import write_erofs
from cellmesh.image.errors import ArchiveInvalid, CredentialInImage, ImageTooLarge
from cellmesh.image.guard import credential_in
from cellmesh.image.layers import apply_layer
from cellmesh.image.limits import MAX_UNPACKED
from cellmesh.image.manifest import SOURCE_DATE_EPOCH, container_manifest, describe
from cellmesh.image.packing import Allowance, unpack
from cellmesh.image.progress import Progress
from cellmesh.image.tree import Directory, File, Tree, walk

if TYPE_CHECKING:
    from cellmesh.image.store import ImageStore


def import_container(store: ImageStore, path: Path, *, reference: str, progress: Progress) -> str:
    """Import the image at `path` into `store` and return its digest; see ImageStore.import_container."""
    with store.draft() as draft, store.spool() as spool, open_blobs(path, spool) as blobs:
        progress("reading", 0, 0)
        archive = read_archive(blobs, reference)
        config = read_config(archive.config)
        found = credential_in(config.env, (*config.entrypoint, *config.cmd))
        if found is not None:
            raise CredentialInImage(found)
        written = about(config)
        tree = _flatten(archive, spool, progress)
        progress("writing", 0, 0)
        description = Directory(children={"config.json": File(content=written)})
        write_erofs(
            Directory(children={"rootfs": tree.root, ".cellmesh": description}),
            draft / "rootfs.erofs",
            uuid=bytes.fromhex(archive.source.digest.removeprefix("sha256:"))[:16],
            timestamp=SOURCE_DATE_EPOCH,
            on_block=lambda done, total: progress("writing", done, total),
        )
        return store.publish(draft, container_manifest(describe(draft / "rootfs.erofs"), config, archive.source))


def _flatten(archive: Archive, spool: Path, progress: Progress) -> Tree:
    """Return the tree all layers make together; their unpacked archives stay in `spool`."""
    tree = Tree()
    allowance = Allowance()
    for number, layer in enumerate(archive.layers):
        progress("layers", number, len(archive.layers))
        unpacked = spool / f"layer-{number}"
        if unpack(layer.packed, unpacked, allowance, layer.name) != layer.diff_id:
            raise ArchiveInvalid(layer.name, "unpacked it does not have the hash that the image's configuration says.")
        apply_layer(tree, unpacked, layer.name)
    progress("layers", len(archive.layers), len(archive.layers))
    _check_size(tree)
    return tree


def _check_size(tree: Tree) -> None:
    """Refuse files that are larger together than an image may be: a sparse one has a size that no layer had to hold."""
    files = {id(node): node.size for _, node in walk(tree.root) if isinstance(node, File)}
    if sum(files.values()) > MAX_UNPACKED:
        raise ImageTooLarge("bytes in its files", MAX_UNPACKED)
