"""Container archives for tests, made of exactly the entries a test names: OCI layouts and `docker save` tars."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, content: bytes = b"", **attributes: object) -> Entry:
    """Return a tar entry; `attributes` are set on its TarInfo (`type`, `linkname`, `mode`, `uid`, …)."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def directory(name: str, **attributes: object) -> Entry:
    """Return a directory entry."""
    return entry(name, type=tarfile.DIRTYPE, mode=0o755, **attributes)


def link(name: str, target: str, **attributes: object) -> Entry:
    """Return a symbolic link."""
    return entry(name, type=tarfile.SYMTYPE, linkname=target, **attributes)


def hard_link(name: str, target: str) -> Entry:
    """Return a hard link."""
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def tar(entries: Sequence[Entry]) -> bytes:
    """Return an uncompressed tar archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def layout(
    target: Path,
    layers: Sequence[bytes],
    settings: Mapping[str, object] | None = None,
    *,
    diff_ids: Sequence[str] | None = None,
) -> Path:
    """Write an OCI layout of packed or plain `layers`; `diff_ids` default to the hashes of what they unpack to."""
    blobs = target / "blobs/sha256"
    blobs.mkdir(parents=True)
    plain = [gzip.decompress(layer) if layer.startswith(b"\x1f\x8b") else layer for layer in layers]
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": settings or {},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids or (digest(layer) for layer in plain))},
    }
    manifest = {
        "schemaVersion": 2,
        "config": keep_blob(blobs, json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [keep_blob(blobs, layer, "application/vnd.oci.image.layer.v1.tar") for layer in layers],
    }
    write_index(target, [keep_blob(blobs, json.dumps(manifest).encode(), MANIFEST)])
    (target / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return target


def write_index(target: Path, entries: Sequence[Mapping[str, object]]) -> None:
    """Write the index of a layout."""
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": list(entries)}))


def docker_archive(target: Path, layers: Sequence[bytes], settings: Mapping[str, object] | None = None) -> Path:
    """Write what `docker save` wrote before it wrote OCI layouts."""
    diff_ids = [digest(layer) for layer in layers]
    config = json.dumps({"config": settings or {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    names = [f"layer{number}/layer.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Config": name, "RepoTags": ["app:1"], "Layers": names}]).encode()
    parts = [entry(name, config), entry("manifest.json", manifest)]
    target.write_bytes(tar([*parts, *(entry(path, layer) for path, layer in zip(names, layers, strict=True))]))
    return target


def run_as(target: Path, user: str) -> Path:
    """Change whom the one image of a layout runs as."""
    return configure(target, User=user)


def configure(target: Path, **settings: object) -> Path:
    """Change settings of the one image of a layout."""
    blobs = target / "blobs/sha256"
    (image,) = json.loads((target / "index.json").read_bytes())["manifests"]
    manifest = _load(blobs, image["digest"])
    config = _load(blobs, manifest["config"]["digest"])
    config["config"].update(settings)
    manifest["config"] = keep_blob(blobs, json.dumps(config).encode(), manifest["config"]["mediaType"])
    write_index(target, [{**image, **keep_blob(blobs, json.dumps(manifest).encode(), image["mediaType"])}])
    return target


def extend(target: Path, layer: bytes, **settings: object) -> Path:
    """Put one more layer on the one image of a layout, and set parts of its configuration, such as `User`."""
    blobs = target / "blobs/sha256"
    (image,) = json.loads((target / "index.json").read_bytes())["manifests"]
    manifest = _load(blobs, image["digest"])
    config = _load(blobs, manifest["config"]["digest"])
    config["config"].update(settings)
    config["rootfs"]["diff_ids"].append(digest(layer))
    manifest["config"] = keep_blob(blobs, json.dumps(config).encode(), manifest["config"]["mediaType"])
    manifest["layers"].append(keep_blob(blobs, layer, "application/vnd.oci.image.layer.v1.tar"))
    write_index(target, [{**image, **keep_blob(blobs, json.dumps(manifest).encode(), image["mediaType"])}])
    return target


def pack_layout(source: Path, target: Path) -> Path:
    """Pack a layout directory into one gzipped tar."""
    with tarfile.open(target, "w:gz") as archive:
        archive.add(source, arcname=".")
    return target


def digest(data: bytes) -> str:
    """Return the digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _load(blobs: Path, named: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((blobs / named.removeprefix("sha256:")).read_bytes())
    return document


def keep_blob(blobs: Path, data: bytes, media_type: str) -> dict[str, object]:
    """Write a blob into a layout and return its descriptor."""
    (blobs / hashlib.sha256(data).hexdigest()).write_bytes(data)
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}
