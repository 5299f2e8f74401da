"""Files of /etc that the cell decides and not the image: names of the container itself, and how others are looked up.

Each start of a container gets fresh ones in a small file system of their own: its root may write them, as in other
container engines, and fills no more than that.
"""

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cellmesh.guest import boot, kernel
from cellmesh.guest.containers import confined

_SIZE = "64k"
_ETC = "etc"
_RESOLV_CONF = """\
# A cell has no network, so there is no name server: names that are not in /etc/hosts are not found.
# Without a `nameserver` line a resolver asks 127.0.0.1, which refuses at once.
options timeout:1 attempts:1
"""


def contents(name: str) -> dict[str, str]:
    """Return the text of each file of a container, by its name in /etc."""
    hosts = f"127.0.0.1\tlocalhost {name}\n::1\tlocalhost ip6-localhost ip6-loopback {name}\n"
    return {"hosts": hosts, "hostname": f"{name}\n", "resolv.conf": _RESOLV_CONF}


def prepare(
    home: Path, root: Path, name: str, owner: int, persistent: Sequence[tuple[Path, str]]
) -> list[tuple[Path, str]]:
    """Write the files and make a place for each below `root`; returns what to bind where. Raises OSError; blocks.

    `owner` is the machine's id of the container's root. A file is left out where the image, or a persistent path, has
    something that no file can be bound over.
    """
    remove(home)
    directory = home / _ETC
    directory.mkdir(parents=True, exist_ok=True)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("tmpfs", str(directory), "tmpfs", flags, f"mode=0755,size={_SIZE}")
    binds = []
    for file, text in contents(name).items():
        if make_place(root, file, owner, persistent):
            (directory / file).write_text(text)
            os.chown(directory / file, owner, owner)
            binds.append((directory / file, f"/{_ETC}/{file}"))
        else:
            boot.say(f"container {name}: /{_ETC}/{file} stays its own: it is no place for a file")
    return binds


def remove(home: Path) -> None:
    """Let go of a container's files; none is fine."""
    with contextlib.suppress(OSError):
        kernel.unmount(str(home / _ETC), lazy=True)


def make_place(root: Path, file: str, owner: int, persistent: Sequence[tuple[Path, str]]) -> bool:
    """Make sure that /etc of a container has a file to bind over; returns whether it has. Blocks.

    A symbolic link there is replaced: where it leads is the image's choice, and another file would be covered.
    """
    path = f"/{_ETC}/{file}"
    if any(target == path or target.startswith(f"{path}/") for _, target in persistent):
        return False
    kept = next((source for source, target in persistent if target == f"/{_ETC}"), None)
    try:
        if kept is None:
            _make_directory(root, owner)
        with confined.opened(kept or root, "." if kept else _ETC, os.O_DIRECTORY) as directory:
            return _has_file(directory, file, owner)
    except OSError:
        return False  # A full disk, or an /etc that is no directory, keeps no container from starting.


def _make_directory(root: Path, owner: int) -> None:
    with confined.opened(root, ".") as directory, contextlib.suppress(FileExistsError):
        os.mkdir(_ETC, 0o755, dir_fd=directory)
        os.chown(_ETC, owner, owner, dir_fd=directory, follow_symlinks=False)


def _has_file(directory: int, file: str, owner: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(file, dir_fd=directory, follow_symlinks=False).st_mode
        if not stat.S_ISLNK(mode):
            return not stat.S_ISDIR(mode)
        os.unlink(file, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    created = os.open(file, flags, 0o644, dir_fd=directory)
    try:
        os.fchown(created, owner, owner)
    finally:
        os.close(created)
    return True
