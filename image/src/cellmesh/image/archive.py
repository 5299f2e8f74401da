"""Read the one image of a container archive: an OCI layout, what `docker save` writes, or skopeo's `dir:`.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md says what an OCI layout is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cellmesh.image.blobs import Blobs, document, hash_of, need, parse
from cellmesh.image.documents import array_of, hex_of, object_of, text_of
from cellmesh.image.errors import AmbiguousImage, ArchiveInvalid
from cellmesh.image.foreign import describe_foreign
from cellmesh.image.index import Index, choose
from cellmesh.image.limits import MAX_DOCUMENT, MAX_LAYERS, MAX_UNPACKED
from cellmesh.image.manifest import ContainerSource
from cellmesh.image.tree import Extent

LAYER_TYPES = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A packed layer and the SHA-256 (hex) of what it unpacks to."""

    name: str
    packed: Extent
    diff_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """The image of an archive; `config` is its configuration document as found there."""

    layers: tuple[Layer, ...]
    config: Mapping[str, Any]
    source: ContainerSource


def read_archive(blobs: Blobs, reference: str = "") -> Archive:
    """Return the image for linux/amd64, called `reference` if that is given; every document is checked by its digest.

    Raises ArchiveInvalid, or AmbiguousImage if several images are left.
    """
    if blobs.find("oci-layout") is not None:
        return _oci(Index(blobs), object_of(document(blobs, "index.json"), "index.json"), reference)
    if blobs.find("manifest.json") is not None:
        top = document(blobs, "manifest.json")
        if isinstance(top, list):
            return _docker(blobs, top, reference)
        return _directory(blobs, top, reference)
    raise ArchiveInvalid(blobs.name, describe_foreign(blobs))


def _oci(index: Index, document: Mapping[str, Any], reference: str) -> Archive:
    chosen = choose(index, document, reference)
    name, extent = index.blob(chosen.descriptor, MAX_DOCUMENT)
    manifest = object_of(parse(extent, name), name)
    return _manifest(index, manifest, ContainerSource(format="oci", digest=chosen.digest, reference=chosen.name))


def _directory(blobs: Blobs, top: Mapping[str, Any], reference: str) -> Archive:
    """Read skopeo's `dir:`, which has a manifest or an index at its top and blobs by the bare hex of their digest."""
    index = Index(blobs, prefix="")
    if "manifests" in top:
        return _oci(index, top, reference)
    digest = f"sha256:{hash_of(need(blobs, 'manifest.json', MAX_DOCUMENT))}"
    return _manifest(index, top, ContainerSource(format="dir", digest=digest, reference=reference))


def _manifest(index: Index, manifest: Mapping[str, Any], source: ContainerSource) -> Archive:
    if manifest.get("schemaVersion") == 1:
        raise ArchiveInvalid(
            "manifest", "it is of Docker's schema 1, of 2015; convert it: `skopeo copy --format oci SOURCE oci:LAYOUT`."
        )
    config_name, extent = index.blob(object_of(manifest.get("config"), "manifest"), MAX_DOCUMENT)
    config = object_of(parse(extent, config_name), config_name)
    layers = []
    for layer in array_of(manifest.get("layers"), "manifest"):
        descriptor = object_of(layer, "manifest")
        kind = str(descriptor.get("mediaType", LAYER_TYPES[0]))
        if not kind.startswith(LAYER_TYPES) or "encrypted" in kind:
            raise ArchiveInvalid("manifest", f"it has a layer of type {kind!r:.100}; only tar layers can be imported.")
        layers.append(index.blob(descriptor, MAX_UNPACKED))
    return _archive(layers, config, source, config_name)


def _docker(blobs: Blobs, entries: list[Any], reference: str) -> Archive:
    entry, name = _choose_saved(blobs, [object_of(entry, "manifest.json") for entry in entries], reference)
    config_name = text_of(entry.get("Config"), "manifest.json")
    config_extent = need(blobs, config_name, MAX_DOCUMENT)
    digest = hash_of(config_extent)
    if digest not in config_name:
        raise ArchiveInvalid(config_name, "its bytes do not have the hash that its name says.")
    config = object_of(parse(config_extent, config_name), config_name)
    names = [text_of(layer, "manifest.json") for layer in array_of(entry.get("Layers"), "manifest.json")]
    layers = [(name, need(blobs, name, MAX_UNPACKED)) for name in names]
    source = ContainerSource(format="docker-archive", digest=f"sha256:{digest}", reference=name)
    return _archive(layers, config, source, config_name)


def _choose_saved(blobs: Blobs, entries: list[Mapping[str, Any]], reference: str) -> tuple[Mapping[str, Any], str]:
    """Return the entry of `docker save`'s manifest that is wanted, and its name."""
    found: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for entry in entries:
        config = text_of(entry.get("Config"), "manifest.json")
        tags = [text_of(tag, "manifest.json") for tag in array_of(entry.get("RepoTags") or [], "manifest.json")]
        found.setdefault(config, (entry, []))[1].extend(tags)
    if not found:
        raise ArchiveInvalid("manifest.json", "it names no image.")
    fits = [(entry, tags) for entry, tags in found.values() if not reference or reference in tags]
    if len(fits) != 1:
        names = tuple(sorted(tag for _, tags in found.values() for tag in tags))
        raise AmbiguousImage(blobs.name, names or tuple(found), reference)
    entry, tags = fits[0]
    return entry, reference or (tags[0] if tags else "")


def _archive(
    layers: list[tuple[str, Extent]], config: Mapping[str, Any], source: ContainerSource, name: str
) -> Archive:
    """Pair the layers with the hashes the configuration gives for them."""
    platform = (config.get("os", "linux"), config.get("architecture", "amd64"))
    if platform != ("linux", "amd64"):
        shown = f"{platform[0]}/{platform[1]}"
        raise ArchiveInvalid(name, f"the image is for {shown:.60}, cells are linux/amd64; export it for that platform.")
    diff_ids = array_of(object_of(config.get("rootfs"), name).get("diff_ids"), name)
    if len(diff_ids) != len(layers) or len(layers) > MAX_LAYERS:
        raise ArchiveInvalid(
            name, f"it has {len(layers)} layers and {len(diff_ids)} hashes of layers; at most {MAX_LAYERS} pairs go."
        )
    pairs = zip(layers, diff_ids, strict=True)
    return Archive(
        layers=tuple(Layer(name=part, packed=extent, diff_id=hex_of(found, name)) for (part, extent), found in pairs),
        config=config,
        source=source,
    )
