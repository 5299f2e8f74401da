"""Find the one image in a container archive: an OCI layout, or what `docker save` writes.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md says what an OCI layout is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cellmesh.image.blobs import MAX_DOCUMENT, MAX_UNPACKED, Blobs, document, hash_of, need, parse
from cellmesh.image.errors import ArchiveInvalid
from cellmesh.image.manifest import ContainerSource
from cellmesh.image.tree import Extent

MAX_LAYERS = 127  # as container runtimes allow
MAX_NESTING = 4
INDEX_TYPES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
MANIFEST_TYPES = {
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
}
REFERENCE = "org.opencontainers.image.ref.name"
_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")


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


def read_archive(blobs: Blobs) -> Archive:
    """Return the image for linux/amd64, every document of it checked against its digest; raises ArchiveInvalid."""
    if blobs.find("oci-layout") is not None:
        return _oci(blobs)
    if blobs.find("manifest.json") is not None:
        return _docker(blobs)
    raise ArchiveInvalid("archive", "it is neither an OCI layout (oci-layout) nor from `docker save` (manifest.json).")


def _oci(blobs: Blobs) -> Archive:
    descriptor = _choose(blobs, _object(document(blobs, "index.json"), "index.json"), 0)
    name, extent = _blob(blobs, descriptor, MAX_DOCUMENT)
    manifest = _object(parse(extent, name), name)
    config_name, config_extent = _blob(blobs, _object(manifest.get("config"), name), MAX_DOCUMENT)
    config = _object(parse(config_extent, config_name), config_name)
    layers = [_blob(blobs, _object(layer, name), MAX_UNPACKED) for layer in _array(manifest.get("layers"), name)]
    reference = _object(descriptor.get("annotations") or {}, name).get(REFERENCE, "")
    source = ContainerSource(format="oci", digest=str(descriptor["digest"]), reference=_text(reference, name))
    return _archive(layers, config, source, config_name)


def _docker(blobs: Blobs) -> Archive:
    entries = _array(document(blobs, "manifest.json"), "manifest.json")
    if len(entries) != 1:
        raise ArchiveInvalid("manifest.json", f"it names {len(entries)} images; save exactly one.")
    entry = _object(entries[0], "manifest.json")
    config_name = _text(entry.get("Config"), "manifest.json")
    config_extent = need(blobs, config_name, MAX_DOCUMENT)
    digest = hash_of(config_extent)
    if digest not in config_name:
        raise ArchiveInvalid(config_name, "its bytes do not have the hash that its name says.")
    config = _object(parse(config_extent, config_name), config_name)
    names = [_text(layer, "manifest.json") for layer in _array(entry.get("Layers"), "manifest.json")]
    layers = [(name, need(blobs, name, MAX_UNPACKED)) for name in names]
    tags = _array(entry.get("RepoTags") or [], "manifest.json")
    reference = _text(tags[0], "manifest.json") if tags else ""
    source = ContainerSource(format="docker-archive", digest=f"sha256:{digest}", reference=reference)
    return _archive(layers, config, source, config_name)


def _archive(
    layers: list[tuple[str, Extent]], config: Mapping[str, Any], source: ContainerSource, name: str
) -> Archive:
    """Pair the layers with the hashes the configuration gives for them."""
    diff_ids = _array(_object(config.get("rootfs"), name).get("diff_ids"), name)
    if len(diff_ids) != len(layers) or len(layers) > MAX_LAYERS:
        raise ArchiveInvalid(
            name, f"it has {len(layers)} layers and {len(diff_ids)} hashes of layers; at most {MAX_LAYERS} pairs go."
        )
    pairs = zip(layers, diff_ids, strict=True)
    return Archive(
        layers=tuple(Layer(name=part, packed=extent, diff_id=_hex(found, name)) for (part, extent), found in pairs),
        config=config,
        source=source,
    )


def _choose(blobs: Blobs, index: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
    """Return the descriptor of the one image manifest for linux/amd64 that `index` leads to."""
    if depth >= MAX_NESTING:
        raise ArchiveInvalid("index.json", "its indexes are nested too deeply.")
    entries = [_object(entry, "index.json") for entry in _array(index.get("manifests"), "index.json")]
    fits = [entry for entry in entries if _fits(entry)]
    if len(fits) != 1:
        raise ArchiveInvalid(
            "index.json", f"it leads to {len(fits)} images for linux/amd64; export exactly one, for that platform."
        )
    if fits[0].get("mediaType") not in INDEX_TYPES:
        return fits[0]
    name, extent = _blob(blobs, fits[0], MAX_DOCUMENT)
    chosen = _choose(blobs, _object(parse(extent, name), name), depth + 1)
    annotations = {**_object(fits[0].get("annotations") or {}, name), **_object(chosen.get("annotations") or {}, name)}
    return {**chosen, "annotations": annotations}


def _fits(entry: Mapping[str, Any]) -> bool:
    """Tell whether an entry of an index may be the image; attestations carry the platform unknown/unknown."""
    if entry.get("mediaType") not in INDEX_TYPES | MANIFEST_TYPES:
        return False
    platform = entry.get("platform")
    if not isinstance(platform, dict):
        return platform is None
    return (platform.get("os"), platform.get("architecture")) == ("linux", "amd64")


def _blob(blobs: Blobs, descriptor: Mapping[str, Any], limit: int) -> tuple[str, Extent]:
    """Return name and place of what a descriptor points at, its size and hash checked."""
    name = f"blobs/sha256/{_hex(descriptor.get('digest'), 'descriptor')}"
    extent = need(blobs, name, limit)
    if extent.size != descriptor.get("size"):
        raise ArchiveInvalid(name, f"it has {extent.size} bytes, its descriptor says {descriptor.get('size')!r:.40}.")
    if hash_of(extent) != name.rpartition("/")[2]:
        raise ArchiveInvalid(name, "its bytes do not have the hash that its name says; export the image again.")
    return name, extent


def _hex(digest: object, where: str) -> str:
    match = _SHA256.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        raise ArchiveInvalid(where, f"{digest!r:.100} is no sha256 digest.")
    return match[1]


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ArchiveInvalid(where, f"a JSON object was expected, not {value!r:.60}.")
    return value


def _array(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ArchiveInvalid(where, f"a JSON array was expected, not {value!r:.60}.")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ArchiveInvalid(where, f"a text was expected, not {value!r:.60}.")
    return value
