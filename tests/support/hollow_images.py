"""Images with manifests as they should be and next to nothing in their files: enough for a VMM that boots nothing."""

from __future__ import annotations

from pathlib import Path

from cellmesh.image import ContainerConfig, ContainerSource, ImageStore
from cellmesh.image.manifest import MANIFEST, container_manifest, describe, digest_of, guest_manifest

_PARTS = {"kernel": "vmlinuz", "initramfs": "initramfs", "rootfs": "rootfs.erofs"}
_SECTOR = 512


def hollow_guest(root: Path) -> str:
    """Put a guest image into the store at `root`, make it the default, and return its digest."""
    draft = root / "draft-guest"
    draft.mkdir(mode=0o755, parents=True)
    for name in _PARTS.values():
        # A VMM looks at a kernel's magic number before it boots it.
        _fill(draft / name, b"\x7fELF" + name.encode())
    files = {
        part: describe(draft / name, release="6.0-hollow" if part == "kernel" else None)
        for part, name in _PARTS.items()
    }
    digest = _adopt(draft, guest_manifest(files, cmdline="console=hvc0", agent_version="0.0.0", epoch=0, packages=()))
    ImageStore(root).set_default_guest(digest)
    return digest


def hollow_container(root: Path, name: str = "app") -> str:
    """Put a container image into the store at `root` and return its digest; another name is another image."""
    draft = root / f"draft-{name}"
    draft.mkdir(mode=0o755, parents=True)
    _fill(draft / "rootfs.erofs", name.encode())
    config = ContainerConfig(entrypoint=("/app",), cmd=(), env=(), working_dir="/", user="0", exposed_ports=())
    source = ContainerSource(format="oci", digest=f"sha256:{'0' * 64}", reference=name)
    return _adopt(draft, container_manifest(describe(draft / "rootfs.erofs"), config, source))


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content.ljust(_SECTOR, b"\0"))
    path.chmod(0o644)


def _adopt(draft: Path, manifest: bytes) -> str:
    (draft / MANIFEST).write_bytes(manifest)
    digest = digest_of(manifest)
    draft.rename(draft.parent / digest.removeprefix("sha256:"))
    return digest
