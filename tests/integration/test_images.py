"""Images as they are really built: reproducible, quick the second time, bootable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cellmesh.image import ContainerImage, GuestImage, ImageStore, build_guest, debian
from cellmesh.image.cache import BuildCache, default_cache
from cellmesh.image.erofs import write_erofs
from cellmesh.image.tree import Directory, File, Tree
from support import erofs
from support.images import EXAMPLES

BOOT_SECONDS = 120
INIT = """#!/usr/bin/busybox sh
/usr/bin/busybox mount -t proc proc /proc
/usr/bin/busybox mount -t devtmpfs dev /dev
/usr/bin/busybox mount -t sysfs sys /sys
echo "mounts: $(/usr/bin/busybox grep -c 'erofs ro' /proc/mounts)"
echo "modules: $(/usr/bin/busybox cut -d' ' -f1 /proc/modules | /usr/bin/busybox sort | /usr/bin/busybox tr '\\n' ' ')"
echo "vsock: $(/usr/bin/busybox ls /dev/vsock)"
/usr/bin/busybox poweroff -f
"""


@pytest.fixture
def packages_only(tmp_path: Path, guest_image: GuestImage) -> Path:
    """Give a cache that has the packages of the guest image and nothing made from them."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "packages").symlink_to(default_cache() / "packages")
    return cache


def test_a_build_from_recorded_packages_is_the_same_image(
    guest_image: GuestImage, packages_only: Path, tmp_path: Path
) -> None:
    """From the package list in a manifest, with no other half-product, the same digest comes out elsewhere."""
    store = ImageStore(tmp_path / "images")
    digest = build_guest(store, packages=guest_image.packages, cache=packages_only)
    assert digest == guest_image.digest
    assert store.verify(digest) == []


def test_every_byte_has_a_named_origin(guest_image: GuestImage) -> None:
    """The manifest names kernel, interpreter, runtime and gRPC with version and hash."""
    packages = {package.name: package for package in guest_image.packages}
    assert {"busybox-static", "crun", "grpcio", "libc6", "protobuf", "python3.13-minimal"} <= set(packages)
    assert any(name.startswith("linux-image-6") for name in packages)
    assert all(package.version and len(package.sha256) == 64 for package in packages.values())


def test_a_second_build_does_only_the_last_layer(guest_image: GuestImage, tmp_path: Path) -> None:
    """With a warm cache no package is downloaded or unpacked for the root: its prepared directory is left untouched."""
    roots = default_cache() / "roots"
    before = {path.name: path.stat().st_mtime_ns for path in roots.iterdir()}
    assert build_guest(ImageStore(tmp_path / "images")) == guest_image.digest
    assert {path.name: path.stat().st_mtime_ns for path in roots.iterdir()} == before


def test_the_root_has_what_the_agent_needs_and_little_else(guest_image: GuestImage, tmp_path: Path) -> None:
    """Agent, gRPC and crun are there, every module is compiled, and there is no shell and no package manager."""
    root = erofs.extract(guest_image.rootfs, tmp_path / "root")
    modules = root / "usr/lib/cellmesh"
    for path in ("cellmesh/guest/__main__.py", "cellmesh/api/guest/v1/guest_service_pb2.py", "grpc/__init__.py"):
        source = modules / path
        assert source.is_file()
        compiled = source.parent / "__pycache__" / f"{source.stem}.cpython-313.pyc"
        # PEP 552: flags 1 is "checked by hash" off, so the source is never read at start.
        assert compiled.read_bytes()[4:8] == b"\x01\x00\x00\x00"
    assert (root / "usr/bin/crun").stat().st_mode & 0o111
    assert {path.name for path in (root / "usr/bin").iterdir()} == {"crun", "python3", "python3.13"}
    assert {"data", "dev", "images", "proc", "run", "sys", "tmp"} <= {path.name for path in root.iterdir()}
    assert not (modules / "cellmesh/hypervisor").exists()


@pytest.mark.guest
def test_the_boot_files_reach_init_by_the_disks_serial(guest_image: GuestImage, tmp_path: Path) -> None:
    """Kernel and initramfs load the modules, pick the disk called `root` among others, and start its /sbin/init."""
    disk = tmp_path / "root.erofs"
    write_erofs(_shell_root(guest_image, tmp_path).root, disk, uuid=bytes(16), timestamp=0)
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(1 << 20))
    argv = [
        *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-nographic"),
        *("-no-user-config", "-no-reboot", "-kernel", guest_image.kernel, "-initrd", guest_image.initramfs),
        *("-append", guest_image.cmdline, "-device", "virtio-serial-pci"),
        *("-chardev", "stdio,id=console,signal=off", "-device", "virtconsole,chardev=console"),
        *_disk(other, "data"),
        *_disk(disk, "root"),
    ]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BOOT_SECONDS)
    lines = dict(line.split(": ", 1) for line in done.stdout.replace("\r", "").splitlines() if ": " in line)
    assert done.returncode == 0, done.stderr
    assert lines["mounts"] == "1", done.stdout
    assert {"erofs", "overlay", "virtio_blk", "vmw_vsock_virtio_transport", "vsock"} <= set(lines["modules"].split())
    assert lines["vsock"] == "/dev/vsock"


def test_the_examples_are_reproducible(example_images: dict[str, ContainerImage], tmp_path: Path) -> None:
    """Built and imported again elsewhere, the examples have the same digests; they differ in name and colour only."""
    subprocess.run([sys.executable, EXAMPLES / "build.py", tmp_path / "layouts"], check=True, stdout=subprocess.DEVNULL)
    store = ImageStore(tmp_path / "images")
    for name, image in example_images.items():
        assert store.import_container(tmp_path / "layouts" / name) == image.digest
    live, dev = (set(example_images[name].config.env) for name in ("live", "dev"))
    assert {entry.partition("=")[0] for entry in live ^ dev} == {"APP_NAME", "APP_COLOUR"}
    assert all(image.config.user == "1000:1000" for image in example_images.values())


def _shell_root(guest_image: GuestImage, spool: Path) -> Tree:
    """Return a root whose init is a shell script that reports and powers off."""
    tree = Tree()
    busybox = next(package for package in guest_image.packages if package.name == "busybox-static")
    debian.unpack(tree, BuildCache(default_cache()), busybox, spool)
    for name in ("dev", "proc", "sys"):
        tree.put(name, Directory())
    tree.put("sbin/init", File(content=INIT.encode(), mode=0o755))
    return tree


def _disk(path: Path, serial: str) -> list[str]:
    drive = f"file={path},format=raw,if=none,id={serial},readonly=on"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={serial},serial={serial}"]
