"""Build a guest image: kernel, initramfs and root, each from packages the manifest names."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from cellmesh.image import debian
from cellmesh.image.cache import BuildCache, default_cache
from cellmesh.image.erofs import write_erofs
from cellmesh.image.errors import BuildFailed
from cellmesh.image.initramfs import build_initramfs
from cellmesh.image.kernel import find_kernel, unpack_kernel
from cellmesh.image.lock import KERNEL_IMAGE, Lock
from cellmesh.image.manifest import SOURCE_DATE_EPOCH, Package, describe, guest_manifest
from cellmesh.image.progress import Progress, silent
from cellmesh.image.root import MODULES, add_directory, base_tree, bundle_modules, compile_modules, prepared_root
from cellmesh.image.store import ImageStore
from cellmesh.image.tree import Extent, File, Tree
from cellmesh.image.wheels import is_wheel

ROOT_DEBS = (
    "crun", "libc6", "libcap2", "libexpat1", "libffi8", "libgcc-s1", "libpython3.13-minimal", "libpython3.13-stdlib",
    "libseccomp2", "libstdc++6", "libsystemd0", "libuuid1", "libyajl2", "python3.13-minimal", "zlib1g",
)  # fmt: skip
WHEELS = ("grpcio", "grpcio-health-checking", "protobuf", "typing_extensions")
KERNEL = "linux-image-cloud-amd64"
BUSYBOX = "busybox-static"
# hvc0: a UART costs a trap per byte. panic=1: the VMM sees a reboot, not a hang. cryptomgr.notests: the ciphers were
# tested when the kernel was built; it saves 0.3 of 4.9 s of an emulated boot, and no other setting tried saved any.
CMDLINE = "console=hvc0 quiet loglevel=3 panic=1 cgroup_no_v1=all random.trust_cpu=on cryptomgr.notests"
# What of our own code goes in; the contracts of the other services stay outside.
AGENT_MODULES = ("cellmesh.guest", "cellmesh.api.common", "cellmesh.api.guest", "cellmesh.api.options", "buf")
STAGES = 6


def build_guest(
    store: ImageStore,
    *,
    progress: Progress = silent,
    packages: Sequence[Package] | None = None,
    refresh: bool = False,
    cache: Path | None = None,
) -> str:
    """Build a guest image with the agent installed here, publish it, and return its digest.

    The same packages and agent give the same digest. `packages` (of another image's manifest) are taken exactly;
    without them the newest are looked up once and then remembered, until `refresh`. Raises BuildFailed or ToolMissing.
    """
    build = BuildCache(cache or default_cache())
    progress("packages", 0, STAGES)
    lock = Lock(build, deb_names=(*ROOT_DEBS, KERNEL, BUSYBOX), wheel_names=WHEELS)
    chosen = lock.packages(packages, refresh=refresh)
    progress("root", 1, STAGES)
    prepared = prepared_root(build, [package for package in chosen if is_wheel(package) or package.name in ROOT_DEBS])
    with store.draft() as draft, build.scratch() as spool:
        progress("agent", 2, STAGES)
        tree = base_tree(prepared)
        add_agent(tree, prepared, spool)
        progress("kernel", 3, STAGES)
        release = _write_boot_files(build, chosen, draft, spool)
        progress("root file system", 4, STAGES)
        seed = hashlib.sha256("".join(sorted(package.sha256 for package in chosen)).encode()).digest()
        write_erofs(tree.root, draft / "rootfs.erofs", uuid=seed[:16], timestamp=SOURCE_DATE_EPOCH)
        files = {
            "kernel": describe(draft / "vmlinux", release=release),
            "initramfs": describe(draft / "initramfs"),
            "rootfs": describe(draft / "rootfs.erofs"),
        }
        progress("publishing", 5, STAGES)
        manifest = guest_manifest(
            files, cmdline=CMDLINE, agent_version=_agent_version(), epoch=SOURCE_DATE_EPOCH, packages=tuple(chosen)
        )
        digest = store.publish(draft, manifest)
    progress("done", STAGES, STAGES)
    return digest


def add_agent(tree: Tree, prepared: Path, spool: Path) -> None:
    """Add /sbin/init, the agent's modules, compiled by the guest's own interpreter, and the bundle it starts from."""
    modules = spool / "agent"
    for name in AGENT_MODULES:
        for source in _locations(name):
            shutil.copytree(
                source,
                modules / name.replace(".", "/"),
                ignore=shutil.ignore_patterns("__pycache__", "*.pyi", "*.pyc", "py.typed"),
                dirs_exist_ok=True,
            )
    compile_modules(prepared, modules, f"/{MODULES}")
    add_directory(tree, modules, MODULES)
    bundle = spool / "bundle"
    bundle_modules(prepared, modules, bundle)
    tree.put(f"{MODULES}/bundle", File(content=Extent(path=bundle, offset=0, size=bundle.stat().st_size)))
    script = Path(__file__).with_name("boot") / "init"
    tree.put("usr/sbin/init", File(content=script.read_bytes(), mode=0o755))


def _locations(module: str) -> Iterable[str]:
    """Return the directories of a package without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise BuildFailed("agent", f"{module} is not installed here; install cellmesh-guest and cellmesh-gen.")
    return spec.submodule_search_locations


def _agent_version() -> str:
    for distribution in ("cellmesh-guest", "cellmesh"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise BuildFailed("agent", "cellmesh-guest is not installed here.")


def _write_boot_files(build: BuildCache, packages: Iterable[Package], draft: Path, spool: Path) -> str:
    """Write kernel and initramfs and return the kernel's release."""
    tree = Tree()
    for package in packages:
        if KERNEL_IMAGE.fullmatch(package.name) or package.name == BUSYBOX:
            debian.unpack(tree, build, package, spool)
    release, image = find_kernel(tree)
    (draft / "vmlinux").write_bytes(unpack_kernel(image))
    busybox = tree.get("usr/bin/busybox")
    if not isinstance(busybox, File):
        raise BuildFailed("initramfs", f"{BUSYBOX} has no /usr/bin/busybox.")
    (draft / "initramfs").write_bytes(build_initramfs(tree, release, busybox))
    return release
