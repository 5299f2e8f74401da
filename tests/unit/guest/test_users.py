"""Users and groups of an image, looked up in tables that the image made: plain, linked, and hostile ones."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cellmesh.guest.containers import confined
from cellmesh.guest.containers.users import UnknownUser, User, find_user

PASSWD = "root:x:0:0::/root:/bin/sh\n# a comment\napp:x:1000:1001::/home/app:/bin/sh\n12:x:70:71::/twelve:/bin/sh\n"
GROUP = "root:x:0:root\nwheel:x:10:root,app\napp:x:1001:\nvideo:x:44:app\nagain:x:44:app\ntwelve:x:9:12\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a root directory with tables, beside a file that no image may reach."""
    (tmp_path / "passwd").write_text("app:x:7:7::/outside:/bin/sh\n")
    directory = tmp_path / "rootfs"
    (directory / "etc").mkdir(parents=True)
    (directory / "etc/passwd").write_text(PASSWD)
    (directory / "etc/group").write_text(GROUP)
    return directory


@pytest.mark.parametrize(
    ("user", "found"),
    [
        ("", User(home="/root", groups=(0, 10))),
        ("app", User(uid=1000, gid=1001, home="/home/app", groups=(10, 44))),
        ("1000", User(uid=1000, gid=1001, home="/home/app", groups=(10, 44))),
        ("app:app", User(uid=1000, gid=1001, home="/home/app")),
        ("app:video", User(uid=1000, gid=44, home="/home/app")),
        ("app:44", User(uid=1000, gid=44, home="/home/app")),
        ("1000:7", User(uid=1000, gid=7, home="/home/app")),
        ("7:8", User(uid=7, gid=8)),
        ("7", User(uid=7)),
        ("7:wheel", User(uid=7, gid=10)),
        ("12", User(uid=70, gid=71, home="/twelve", groups=(9,))),
    ],
)
def test_users_and_groups_are_found_as_docker_finds_them(root: Path, user: str, found: User) -> None:
    """A name, or a number that has a name, brings its supplementary groups; a group asked for is the only one."""
    assert find_user(user, root) == found


@pytest.mark.parametrize("user", ["nobody", "app:nogroup", "70000", "1:70000", "9" * 5000, "\u0663", "-1"])
def test_a_user_that_is_not_there_is_refused(root: Path, user: str) -> None:
    """An unknown name, and an id beyond the container's range, are errors and never root."""
    with pytest.raises(UnknownUser):
        find_user(user, root)


def test_a_group_beyond_the_range_of_a_container_is_refused(root: Path) -> None:
    """The kernel could not give it to the process."""
    (root / "etc/group").write_text("far:x:70000:app\n")
    with pytest.raises(UnknownUser, match="65536 ids"):
        find_user("app", root)


@pytest.mark.parametrize("target", ["/nix/passwd", "../nix/passwd", "../../../../nix/passwd", "/nix/../nix/./passwd"])
def test_a_linked_table_is_found_inside_the_image(root: Path, target: str) -> None:
    """A link is resolved as the container would resolve it, as Nix builds images."""
    (root / "nix").mkdir()
    (root / "etc/passwd").rename(root / "nix/passwd")
    (root / "etc/passwd").symlink_to(target)
    assert find_user("app", root).uid == 1000


@pytest.mark.parametrize("place", ["etc/passwd", "etc"])
@pytest.mark.parametrize("target", ["{outside}", "../../passwd", "/proc/self/cwd/passwd", "passwd", "/"])
def test_no_link_leads_out_of_the_image(root: Path, place: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table outside the root is not found, whatever part of the path is a link and wherever the agent is."""
    monkeypatch.chdir(root.parent)
    if place == "etc":
        (root / "etc").rename(root / "was")
    else:
        (root / place).unlink()
    (root / place).symlink_to(target.format(outside=root.parent if place == "etc" else root.parent / "passwd"))
    with pytest.raises(UnknownUser):
        find_user("app", root)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind"),
    [(os.mkfifo, "a FIFO"), (Path.mkdir, "a directory"), (_socket, "a socket")],
    ids=["fifo", "directory", "socket"],
)
@pytest.mark.parametrize("table", ["etc/passwd", "etc/group"])
def test_a_table_that_is_no_file_is_refused_at_once(
    root: Path, make: Callable[[Path], None], kind: str, table: str
) -> None:
    """No reader waits for a FIFO; the error says what is there in place of the table."""
    (root / table).unlink()
    make(root / table)
    with pytest.raises(UnknownUser, match=f"/{table} is {kind}"):
        find_user("app:app", root)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_is_not_opened(root: Path) -> None:
    """A device node is refused by its kind: an open one would act."""
    (root / "etc/passwd").unlink()
    os.mknod(root / "etc/passwd", 0o20666, os.makedev(1, 5))  # /dev/zero never ends.
    with pytest.raises(UnknownUser, match="a character device"):
        find_user("app", root)


def test_a_table_that_is_too_large_is_refused(root: Path) -> None:
    """The agent reads no more than a mebibyte of a file that an image brought."""
    with (root / "etc/passwd").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnknownUser, match="larger than 1024 KiB"):
        find_user("app", root)


def test_a_file_that_is_not_utf8_is_read(root: Path) -> None:
    """A byte of another encoding in one line hides no other line."""
    (root / "etc/passwd").write_bytes(b"m\xfcller:x:5:5::/:\n" + PASSWD.encode())
    assert find_user("app", root).uid == 1000
    with confined.opened(root, "etc/passwd") as descriptor:
        assert Path(f"/proc/self/fd/{descriptor}").readlink() == root / "etc/passwd"
