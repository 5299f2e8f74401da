"""Build the example images `live` and `dev` as OCI layouts, without Docker: `python examples/build.py DIRECTORY`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from oci_layout import Blob, write_layer, write_layout

from cellmesh.image.cache import BuildCache, default_cache
from cellmesh.image.lock import Lock
from cellmesh.image.root import add_directory, prepared_root
from cellmesh.image.tree import Directory, File, Symlink, Tree

DEBS = (
    "busybox-static", "libc6", "libexpat1", "libffi8", "libpython3.13-minimal", "libpython3.13-stdlib", "libuuid1",
    "python3.13-minimal", "zlib1g",
)  # fmt: skip
# What people try in a shell; all of it is one program.
APPLETS = (
    "awk", "base64", "cat", "chmod", "clear", "cp", "cut", "date", "dd", "df", "dirname", "du", "echo", "env",
    "false", "find", "free", "grep", "head", "hostname", "id", "kill", "less", "ln", "ls", "md5sum", "mkdir",
    "mktemp", "more", "mv", "nc", "netstat", "nproc", "od", "pgrep", "pidof", "printf", "ps", "pwd", "readlink",
    "rm", "rmdir", "sed", "seq", "sh", "sha256sum", "sleep", "sort", "stat", "stty", "sync", "tail", "tar", "tee",
    "test", "timeout", "top", "touch", "tr", "true", "tty", "uname", "uniq", "uptime", "vi", "watch", "wc", "wget",
    "which", "whoami", "xargs", "yes",
)  # fmt: skip
USER = 1000
VARIANTS = {"live": "#1b6e3c", "dev": "#7a3db8"}
APP = Path(__file__).with_name("app")
BASE_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}


def build(target: Path, cache: Path | None = None) -> dict[str, Path]:
    """Write every variant below `target`, in place of what was there; return where each lies."""
    build_cache = BuildCache(cache or default_cache())
    target.mkdir(parents=True, exist_ok=True)
    found = {}
    with build_cache.scratch() as blobs:
        layers = [write_layer(base_tree(build_cache), blobs), write_layer(app_tree(), blobs)]
        for name, colour in VARIANTS.items():
            found[name] = _publish(target / name, layers, name, colour, blobs)
    return found


def base_tree(cache: BuildCache) -> Tree:
    """Return the layer both variants share: an interpreter and a shell, from Debian packages."""
    tree = Tree()
    for name, link in BASE_LINKS.items():
        tree.put(name, Symlink(target=link))
    add_directory(tree, prepared_root(cache, Lock(cache, deb_names=DEBS).packages()), "")
    tree.directory("usr/sbin")
    for applet in APPLETS:
        tree.put(f"usr/bin/{applet}", Symlink(target="busybox"))
    tree.put("usr/bin/python3", Symlink(target="python3.13"))
    tree.put(
        "etc/passwd", File(content=f"root:x:0:0:root:/root:/bin/sh\napp:x:{USER}:{USER}:app:/app:/bin/sh\n".encode())
    )
    tree.put("etc/group", File(content=f"root:x:0:\napp:x:{USER}:\n".encode()))
    tree.put("tmp", Directory(mode=0o1777))
    for name in ("dev", "proc", "root", "run", "sys", "var"):
        tree.put(name, Directory())
    return tree


def app_tree() -> Tree:
    """Return the layer with the app, owned by the user it runs as."""
    tree = Tree()
    tree.put("app", Directory(uid=USER, gid=USER))
    for path in sorted(APP.iterdir()):
        if path.is_file():
            tree.put(f"app/{path.name}", File(content=path.read_bytes(), uid=USER, gid=USER))
    return tree


def _publish(target: Path, layers: list[Blob], name: str, colour: str, work: Path) -> Path:
    settings = {
        "User": f"{USER}:{USER}",
        "WorkingDir": "/app",
        "Entrypoint": ["/usr/bin/python3"],
        "Cmd": ["/app/server.py"],
        "Env": [
            "PATH=/usr/bin:/bin",
            "HOME=/app",
            "PYTHONDONTWRITEBYTECODE=1",
            "PYTHONUNBUFFERED=1",
            f"APP_NAME=sandbox-{name}",
            f"APP_COLOUR={colour}",
        ],
        "ExposedPorts": {"8080/tcp": {}},
    }
    fresh = work / name
    write_layout(fresh, layers, settings, f"sandbox-{name}:latest")
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(fresh, target)
    return target


def main() -> None:
    """Build into the directory named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=default_cache() / "examples")
    for name, path in build(parser.parse_args().directory).items():
        print(f"{name}: {path}")


if __name__ == "__main__":
    main()
