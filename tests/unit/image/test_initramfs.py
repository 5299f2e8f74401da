"""The boot files: modules in an order that loads, an archive cpio reads, a kernel unpacked."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path

import pytest

from cellmesh.image import BuildFailed
from cellmesh.image.initramfs import build_initramfs, load_order
from cellmesh.image.kernel import find_kernel, unpack_kernel
from cellmesh.image.tree import File, Tree

RELEASE = "6.12"
ELF = b"\x7fELF" + bytes(5000)


def kernel_with(modules: dict[str, str]) -> Tree:
    """Return a kernel package whose modules depend on each other as given."""
    tree = Tree()
    for name, depends in modules.items():
        content = b"\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"
        tree.put(f"usr/lib/modules/{RELEASE}/kernel/{name}.ko.xz", File(content=lzma.compress(content)))
    return tree


def bz_image(payload: bytes) -> bytes:
    """Return a bzImage around a packed kernel."""
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    head[0x248:0x250] = (0).to_bytes(4, "little") + (len(payload) + 4).to_bytes(4, "little")
    return bytes(head) + payload + len(ELF).to_bytes(4, "little")


def test_modules_come_after_what_they_need() -> None:
    """Dependencies load first and once, dashes and underscores being the same."""
    kernel = kernel_with({"top": "mid-dle,base", "mid_dle": "base", "base": "", "unused": ""})
    assert [name for name, _ in load_order(kernel, RELEASE, ["top", "base"])] == ["base", "mid_dle", "top"]


@pytest.mark.parametrize(("modules", "release"), [({"top": "absent"}, RELEASE), ({"other": ""}, RELEASE), ({}, "7")])
def test_a_missing_module_fails_the_build(modules: dict[str, str], release: str) -> None:
    """A kernel without a module a cell needs is found at build, not at boot."""
    with pytest.raises(BuildFailed, match="module"):
        list(load_order(kernel_with(modules), release, ["top"]))


def test_the_archive_is_one_cpio_reads(tmp_path: Path) -> None:
    """Another cpio unpacks the initramfs to what was meant."""
    names = ("virtio_blk", "erofs", "overlay", "quota_v2", "vmw_vsock_virtio_transport", "virtio-rng")
    kernel = kernel_with(dict.fromkeys(names, ""))
    data = build_initramfs(kernel, RELEASE, File(content=b"busybox"))
    assert data == build_initramfs(kernel, RELEASE, File(content=b"busybox"))
    subprocess.run(["cpio", "-idm", "--quiet", "--no-absolute-filenames"], input=data, check=True, cwd=tmp_path)
    assert (tmp_path / "modules/order").read_text().splitlines() == [name.replace("-", "_") for name in names]
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert str((tmp_path / "bin/insmod").readlink()) == "busybox"


def test_the_kernel_is_unpacked() -> None:
    """The ELF kernel inside a bzImage comes out whole."""
    packed = subprocess.run(["zstd", "-c"], input=ELF, check=True, capture_output=True).stdout
    assert unpack_kernel(bz_image(packed)) == ELF


@pytest.mark.parametrize("image", [bytes(2048), bz_image(b"\x1f\x8b gzip"), bz_image(b"\x28\xb5\x2f\xfd damaged")])
def test_an_unknown_kernel_fails_the_build(image: bytes) -> None:
    """Whatever is no bzImage packed with zstd is an error that says so."""
    with pytest.raises(BuildFailed, match="kernel"):
        unpack_kernel(image)


def test_a_package_without_kernel_fails_the_build() -> None:
    """A package without /boot/vmlinuz-* is an error."""
    with pytest.raises(BuildFailed, match="vmlinuz"):
        find_kernel(Tree())
