"""Container tools of Debian as they are: buildah, skopeo and umoci, as root, without a daemon and without network.

All they keep lies in one folder. Trees are compared by what a process would see.
"""

from __future__ import annotations

import itertools
import os
import random
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

MODE = 0o777  # fsck.erofs loses the other bits when it sets the owner
TEXTS = ("", "1", "text\n" * 2000)
Seen = dict[str, tuple[str, int, int, int, str]]
"""Kind, mode, owner, group, and content or target, by path."""


class ImageTools:
    """Runs the tools with their storage below `folder`, by buildah's driver `overlay` or `vfs`."""

    def __init__(self, folder: Path, driver: str) -> None:
        self.folder = folder
        self.driver = driver
        (folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "{driver}"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
        )
        self._environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "BUILDAH_ISOLATION": "chroot",
            "TMPDIR": str(folder),
        }

    def run(self, *argv: str | Path) -> str:
        """Run a tool and return what it printed."""
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout.strip()

    def build(self, layout: Path, name: str, *stages: Callable[[Path], None], settings: tuple[str, ...] = ()) -> Path:
        """Build an image with one layer for each stage, which changes the root; return the root as buildah has it."""
        base = "scratch"
        for number, stage in enumerate(stages):
            container = self.run("buildah", "from", "--pull-never", base)
            root = Path(self.run("buildah", "mount", container))
            stage(root)
            self.run("buildah", "config", *settings, container)
            base = f"localhost/{name}-{number}"
            policy = f"--signature-policy={self.folder}/policy.json"
            self.run("buildah", "commit", "--quiet", policy, container, base)
        self.run("buildah", "commit", "--quiet", "--disable-compression", policy, container, f"oci:{layout}:{name}")
        return root

    def copy(self, source: str, target: str) -> None:
        """Copy an image between transports with skopeo."""
        self.run("skopeo", "copy", "--quiet", f"--policy={self.folder}/policy.json", source, target)

    def unpack(self, layout: Path, name: str) -> Path:
        """Return the root that umoci unpacks."""
        bundle = self.folder / f"bundle-{name}"
        self.run("umoci", "unpack", "--image", f"{layout}:{name}", str(bundle))
        return bundle / "rootfs"


def seen(root: Path) -> Seen:
    """Return all that lies below `root`; devices, FIFOs and sockets are left out, as the import leaves them out."""
    found: Seen = {}
    # pathlib's own walk follows links to look at them, and fails where a target's name is too long.
    below = (Path(folder) / name for folder, *names in os.walk(root) for name in itertools.chain(*names))
    for path in below:
        status = path.lstat()
        kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
        kind = kinds.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            continue
        text = path.read_text() if kind == "file" else str(path.readlink()) if kind == "link" else ""
        mode = MODE if kind == "link" else stat.S_IMODE(status.st_mode) & MODE
        found[str(path.relative_to(root))] = (kind, mode, status.st_uid, status.st_gid, text)
    return found


def remove(path: Path) -> None:
    """Remove whatever lies at `path`."""
    subprocess.run(["rm", "-rf", path], check=True)


def random_stage(seed: int) -> Callable[[Path], None]:
    """Return a stage that changes files, directories, links, FIFOs and hard links at random places."""
    draw = random.Random(seed)  # noqa: S311  # the same layers for the same seed

    def stage(root: Path) -> None:
        for _ in range(14):
            folders = [root, *sorted(p for p in root.rglob("*") if p.is_dir() and not p.is_symlink())]
            path = draw.choice(folders) / draw.choice("abcd")
            kind = draw.choice(["file", "file", "directory", "directory", "link", "fifo", "hard", "again", "gone"])
            others = sorted(p for p in root.rglob("*") if p.is_symlink() or not p.is_dir())
            if kind == "again" and path.is_dir() and not path.is_symlink():
                remove(path)  # an overlay marks such a directory opaque
                path.mkdir()
                (path / "fresh").write_text("fresh")
                continue
            source = draw.choice(others) if others else None
            if source == path:
                continue
            if source is not None and source.is_relative_to(path):
                continue
            remove(path)
            if kind == "file":
                path.write_text(draw.choice(TEXTS))
                path.chmod(draw.choice([0o600, 0o755]))
            elif kind == "directory":
                path.mkdir(mode=draw.choice([0o700, 0o755]))
            elif kind == "link":
                path.symlink_to(draw.choice(["a", "/b/c", "../nowhere", "/"]))
            elif kind == "fifo":
                os.mkfifo(path)
            elif kind == "hard" and source is not None:
                os.link(source, path, follow_symlinks=False)
            if os.path.lexists(path):
                os.chown(path, draw.choice([0, 1000]), 33, follow_symlinks=False)

    return stage
