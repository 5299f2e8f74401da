"""What an image's disk says of itself: how to start it, and who its users are."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

_CONFIG_LIMIT = 2 << 20  # as the import of images allows
_PASSWD_LIMIT = 1 << 20
_MAX_ID = 65535


class BadImage(Exception):
    """The image's own description cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who a process runs as, by the container's own numbers."""

    uid: int = 0
    gid: int = 0
    home: str = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How an image wants to be started."""

    argv: tuple[str, ...]
    cmd: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    working_dir: str
    user: User


def read_image(mounted: Path) -> ImageConfig:
    """Read the description of an image mounted here; raises BadImage."""
    try:
        config = json.loads(_read(mounted / ".cellmesh/config.json", _CONFIG_LIMIT))
    except (OSError, ValueError) as error:
        raise BadImage(f"the image has no readable .cellmesh/config.json: {error}") from error
    if not isinstance(config, dict):
        raise BadImage("the image's .cellmesh/config.json is not an object")
    return ImageConfig(
        argv=_strings(config, "entrypoint"),
        cmd=_strings(config, "cmd"),
        environment=tuple(_variable(entry) for entry in _strings(config, "env")),
        working_dir=_string(config, "working_dir") or "/",
        user=find_user(_string(config, "user"), mounted / "rootfs"),
    )


def find_user(user: str, root: Path) -> User:
    """Find `name`, `uid`, `name:group` or `uid:gid` in the image's own tables; raises BadImage."""
    name, _, group = user.partition(":")
    found = _passwd_entry(name or "0", root)
    gid = found.gid
    if group:
        gid = int(group) if group.isdigit() else _group_id(group, root)
    if not (0 <= found.uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
        raise BadImage(f"the image's user {user!r} is outside the {_MAX_ID + 1} ids a container has")
    return User(uid=found.uid, gid=gid, home=found.home)


def _passwd_entry(name: str, root: Path) -> User:
    for fields in _table(root / "etc/passwd", 7):
        if name in {fields[0], fields[2]} and fields[2].isdigit() and fields[3].isdigit():
            return User(uid=int(fields[2]), gid=int(fields[3]), home=fields[5] or "/")
    if not name.isdigit():
        raise BadImage(f"the image's user {name!r} is not in its /etc/passwd")
    return User(uid=int(name))


def _group_id(name: str, root: Path) -> int:
    for fields in _table(root / "etc/group", 4):
        if fields[0] == name and fields[2].isdigit():
            return int(fields[2])
    raise BadImage(f"the image's group {name!r} is not in its /etc/group")


def _table(path: Path, width: int) -> list[list[str]]:
    try:
        text = _read(path, _PASSWD_LIMIT)
    except OSError:
        return []  # An image may do without users; numbers need no table.
    rows = (line.split(":") for line in text.splitlines())
    return [row for row in rows if len(row) >= width]


def _read(path: Path, limit: int) -> str:
    # An image's symlink would lead to the agent's own files.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(limit).decode("utf-8", "replace")


def _strings(config: dict[str, object], key: str) -> tuple[str, ...]:
    value = config.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) and "\0" not in item for item in value):
        raise BadImage(f"{key} in the image's .cellmesh/config.json is not a list of strings")
    return tuple(value)


def _string(config: dict[str, object], key: str) -> str:
    value = config.get(key) or ""
    if not isinstance(value, str):
        raise BadImage(f"{key} in the image's .cellmesh/config.json is not a string")
    return value


def _variable(entry: str) -> tuple[str, str]:
    name, _, value = entry.partition("=")
    return name, value
