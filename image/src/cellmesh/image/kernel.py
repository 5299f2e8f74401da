"""The guest's kernel, unpacked: a VMM that loads it whole spares the guest from unpacking it at each boot."""

from __future__ import annotations

import struct
import subprocess

from cellmesh.image.errors import BuildFailed, ToolMissing
from cellmesh.image.tree import File, Tree, read, walk

SETUP_MAGIC = b"HdrS"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ELF_MAGIC = b"\x7fELF"
SECTOR = 512


def find_kernel(tree: Tree) -> tuple[str, bytes]:
    """Return the release and the bytes of the one kernel in `tree`."""
    boot = tree.directory("boot")
    assert boot is not None
    for path, node in walk(boot):
        if path.startswith("vmlinuz-") and isinstance(node, File):
            return path.removeprefix("vmlinuz-"), read(node.content)
    raise BuildFailed("kernel", "the kernel package has no /boot/vmlinuz-*.")


def unpack_kernel(image: bytes) -> bytes:
    """Return the ELF kernel inside a bzImage (Documentation/arch/x86/boot.rst of Linux, protocol 2.08 or later)."""
    if image[0x202:0x206] != SETUP_MAGIC:
        raise BuildFailed("kernel", "it is no bzImage.")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * SECTOR + offset
    payload = image[start : start + length - 4]  # the last four bytes are the unpacked size
    if not payload.startswith(ZSTD_MAGIC):
        raise BuildFailed("kernel", "it is not packed with zstd, the only way known here.")
    try:
        done = subprocess.run(
            ["zstd", "--decompress", "--stdout", "--quiet"], input=payload, check=True, capture_output=True
        )
    except FileNotFoundError as error:
        raise ToolMissing("zstd", "zstd") from error
    except subprocess.CalledProcessError as error:
        raise BuildFailed("kernel", f"zstd: {error.stderr.decode(errors='replace')}") from error
    if not done.stdout.startswith(ELF_MAGIC):
        raise BuildFailed("kernel", "what is packed in it is no ELF file.")
    return done.stdout
