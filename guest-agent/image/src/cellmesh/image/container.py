"""Import a container image: read an archive, apply its layers in memory, write the disk a cell mounts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmesh.image.archive import Archive, read_archive
from cellmesh.image.blobs import MAX_UNPACKED, open_blobs, unpack
from cellmesh.image.erofs import write_erofs
from cellmesh.image.errors import ArchiveInvalid, CredentialInImage
from cellmesh.image.guard import credential_in
from cellmesh.image.layers import apply_layer
from cellmesh.image.manifest import SOURCE_DATE_EPOCH, ContainerConfig, canonical, container_manifest, describe
from cellmesh.image.progress import Progress
from cellmesh.image.tree import Directory, File, Tree

if TYPE_CHECKING:
    from cellmesh.image.store import ImageStore

MAX_WORDS = 1024
MAX_WORD = 128 << 10  # as the kernel's MAX_ARG_STRLEN


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
        disk = Directory(children={"rootfs": tree.root, ".cellmesh": _about(config)})
        identity = bytes.fromhex(archive.source.digest.removeprefix("sha256:"))[:16]
        write_erofs(
            disk,
            draft / "rootfs.erofs",
            uuid=identity,
            timestamp=SOURCE_DATE_EPOCH,
            on_block=lambda done, total: progress("writing", done, total),
        )
        return store.publish(draft, container_manifest(describe(draft / "rootfs.erofs"), config, archive.source))


def read_config(document: Mapping[str, Any]) -> ContainerConfig:
    """Return how an image wants to be run; raises ArchiveInvalid for what no process could be started with."""
    settings = document.get("config") or {}
    if not isinstance(settings, dict):
        raise ArchiveInvalid("config", "it is no JSON object.")
    ports = settings.get("ExposedPorts") or {}
    if not isinstance(ports, dict):
        raise ArchiveInvalid("config", "ExposedPorts is no JSON object.")
    return ContainerConfig(
        entrypoint=_words(settings, "Entrypoint"),
        cmd=_words(settings, "Cmd"),
        env=_env(_words(settings, "Env")),
        working_dir=_word(settings, "WorkingDir") or "/",
        user=_word(settings, "User"),
        exposed_ports=_words({"ExposedPorts": sorted(ports)}, "ExposedPorts"),
    )


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


def _about(config: ContainerConfig) -> Directory:
    return Directory(children={"config.json": File(content=canonical(asdict(config)))})


def _env(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if "=" not in word or word.startswith("="):
            raise ArchiveInvalid("config", f"Env has {word!r:.100}, which is not NAME=value.")
    return words


def _words(settings: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = settings.get(name) or []
    if not isinstance(value, list) or len(value) > MAX_WORDS:
        raise ArchiveInvalid("config", f"{name} is no array of at most {MAX_WORDS} texts.")
    return tuple(_checked(word, name) for word in value)


def _word(settings: Mapping[str, Any], name: str) -> str:
    return _checked(settings.get(name) or "", name)


def _checked(word: object, name: str) -> str:
    if not isinstance(word, str) or "\0" in word or len(word) > MAX_WORD:
        raise ArchiveInvalid("config", f"{name} has something that is no text of at most {MAX_WORD} characters.")
    return word
