"""Find the image for linux/amd64 that an OCI index leads to, among platforms, variants, names and artifacts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cellmesh.image.blobs import Blobs, hash_of, need, parse
from cellmesh.image.documents import array_of, hex_of, object_of, text_of
from cellmesh.image.errors import AmbiguousImage, ArchiveInvalid
from cellmesh.image.limits import MAX_DOCUMENT
from cellmesh.image.tree import Extent

MAX_NESTING = 4
MAX_DESCRIPTORS = 10_000
INDEX_TYPES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
MANIFEST_TYPES = {
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
}
CONFIG_TYPES = {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
VARIANTS = ("", "v1", "v2", "v3", "v4")
"""Of amd64, the one that runs on most machines first."""


class Index:
    """The blobs of an archive by digest, each checked against it."""

    def __init__(self, blobs: Blobs, *, prefix: str = "blobs/sha256/") -> None:
        self.archive = blobs
        self._prefix = prefix

    def blob(self, descriptor: Mapping[str, Any], limit: int) -> tuple[str, Extent]:
        """Return name and place of what a descriptor points at, its size and hash checked."""
        digest = hex_of(descriptor.get("digest"), "descriptor")
        name = self._prefix + digest
        if not self._prefix and self.archive.find(name) is None:
            name = f"{digest}.manifest.json"  # as skopeo's `dir:` calls the manifests of an index
        extent = need(self.archive, name, limit)
        if extent.size != descriptor.get("size"):
            found = descriptor.get("size")
            raise ArchiveInvalid(name, f"it has {extent.size} bytes, its descriptor says {found!r:.40}.")
        if hash_of(extent) != digest:
            raise ArchiveInvalid(name, "its bytes do not have the hash that its name says; export the image again.")
        return name, extent

    def document(self, descriptor: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the JSON object that a descriptor points at."""
        name, extent = self.blob(descriptor, MAX_DOCUMENT)
        return object_of(parse(extent, name), name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A manifest that may be the image; `name` as the index calls it, or empty."""

    descriptor: Mapping[str, Any]
    name: str

    @property
    def digest(self) -> str:
        """Return the digest of the manifest."""
        return str(self.descriptor.get("digest"))

    @property
    def variant(self) -> int:
        """Return the place of its platform's variant in VARIANTS."""
        platform = self.descriptor.get("platform")
        variant = platform.get("variant") or "" if isinstance(platform, dict) else ""
        return VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS)


def choose(index: Index, top: Mapping[str, Any], reference: str) -> Candidate:
    """Return the one image for linux/amd64, by its name or digest if `reference` is given.

    One manifest under several names is one image, and of the variants of a platform the plainest is taken.
    """
    left = [MAX_DESCRIPTORS]
    found = list(_candidates(index, top, "", 0, left))
    named = [candidate for candidate in found if not reference or reference in {candidate.name, candidate.digest}]
    fits = _plainest(named)
    if len({candidate.digest for candidate in fits}) > 1:
        fits = [candidate for candidate in fits if _is_image(index.document(candidate.descriptor))] or fits
    images = {candidate.digest: candidate for candidate in reversed(fits)}
    if len(images) == 1:
        return next(iter(images.values()))
    if not found:
        raise ArchiveInvalid(
            "index.json",
            "it leads to no image for linux/amd64; export one for that platform (skopeo: --override-arch).",
        )
    names = tuple(sorted({candidate.name or candidate.digest for candidate in (fits or _plainest(found))}))
    raise AmbiguousImage(index.archive.name, names, reference)


def _candidates(
    index: Index, document: Mapping[str, Any], name: str, depth: int, left: list[int]
) -> Iterator[Candidate]:
    """Yield every manifest for linux/amd64 below an index, with the outermost name on the way to it."""
    if depth >= MAX_NESTING:
        raise ArchiveInvalid("index.json", "its indexes are nested too deeply.")
    for entry in array_of(document.get("manifests"), "index.json"):
        descriptor = object_of(entry, "index.json")
        left[0] -= 1
        if left[0] < 0:
            raise ArchiveInvalid("index.json", f"it leads to more than {MAX_DESCRIPTORS} entries.")
        if not _fits(descriptor):
            continue
        called = name or _name(descriptor)
        if descriptor.get("mediaType") in INDEX_TYPES:
            yield from _candidates(index, index.document(descriptor), called, depth + 1, left)
        else:
            yield Candidate(descriptor=descriptor, name=called)


def _name(descriptor: Mapping[str, Any]) -> str:
    annotations = object_of(descriptor.get("annotations") or {}, "index.json")
    # Docker and containerd write the whole name in their own annotation and the tag alone in the other.
    return next((text_of(annotations[key], "index.json") for key in NAMES if annotations.get(key)), "")


def _fits(entry: Mapping[str, Any]) -> bool:
    """Tell whether an entry of an index may be the image; attestations carry the platform unknown/unknown."""
    if entry.get("mediaType") not in INDEX_TYPES | MANIFEST_TYPES or entry.get("artifactType"):
        return False
    platform = entry.get("platform")
    if not isinstance(platform, dict):
        return platform is None
    return (platform.get("os"), platform.get("architecture")) == ("linux", "amd64")


def _plainest(candidates: list[Candidate]) -> list[Candidate]:
    """Return of those with one name the plainest variants."""
    best: dict[str, int] = {}
    for candidate in candidates:
        best[candidate.name] = min(best.get(candidate.name, candidate.variant), candidate.variant)
    return [candidate for candidate in candidates if candidate.variant == best[candidate.name]]


def _is_image(manifest: Mapping[str, Any]) -> bool:
    """Tell an image from a signature, a bill of materials or another artifact that is stored as a manifest."""
    config = manifest.get("config")
    if manifest.get("artifactType") or not isinstance(config, dict) or config.get("mediaType") not in CONFIG_TYPES:
        return False
    layers = manifest.get("layers")
    kinds = [layer.get("mediaType") for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
    return all(".image." in str(kind) for kind in kinds)
