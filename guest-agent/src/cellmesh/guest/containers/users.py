"""Which ids a process has: an image's USER, looked up in the image's own tables as Docker looks it up."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cellmesh.guest.containers import confined

_TABLE_LIMIT = 1 << 20
_MAX_ID = 65535
_NUMBER = re.compile(r"[0-9]{1,10}")


class UnknownUser(Exception):
    """The user or group cannot be found; the message says what is wrong with the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Ids of a process, by the container's own numbers; `groups` are the supplementary ones."""

    uid: int = 0
    gid: int = 0
    home: str = "/"
    groups: tuple[int, ...] = ()


def find_user(user: str, root: Path) -> User:
    """Find `name`, `uid`, `name:group` or `uid:gid` in the tables below `root`; raises UnknownUser.

    Without a group the user has the supplementary groups that /etc/group lists it in. With one it has that group alone.
    """
    name, _, group = user.partition(":")
    login, found = _passwd_entry(name or "0", root)
    gid, groups = found.gid, found.groups
    if group:
        gid = _group_id(group, root)
    elif login:
        groups = _supplementary(login, root)
    if any(number > _MAX_ID for number in (found.uid, gid, *groups)):
        raise UnknownUser(f"user {user!r} has an id outside the {_MAX_ID + 1} ids of a container")
    return User(uid=found.uid, gid=gid, home=found.home, groups=groups)


def _passwd_entry(name: str, root: Path) -> tuple[str, User]:
    for fields in _table(root, "etc/passwd", 4):
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is not None and gid is not None and (name == fields[0] or _number(name) == uid):
            home = fields[5] if len(fields) > 5 else ""
            return fields[0], User(uid=uid, gid=gid, home=home or "/")
    uid = _number(name)
    if uid is None:
        raise UnknownUser(f"user {name!r} is not in /etc/passwd")
    return "", User(uid=uid)


def _group_id(name: str, root: Path) -> int:
    number = _number(name)
    found = _groups(root, lambda group, gid, _: name == group or number == gid)
    if found:
        return found[0]
    if number is None:
        raise UnknownUser(f"group {name!r} is not in /etc/group")
    return number


def _supplementary(login: str, root: Path) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_groups(root, lambda _, __, members: login in members)))


def _groups(root: Path, wanted: Callable[[str, int, list[str]], bool]) -> list[int]:
    found = []
    for fields in _table(root, "etc/group", 3):
        gid = _number(fields[2])
        members = fields[3].split(",") if len(fields) > 3 else []
        if gid is not None and wanted(fields[0], gid, members):
            found.append(gid)
    return found


def _table(root: Path, path: str, width: int) -> list[list[str]]:
    try:
        text = confined.read_file(root, path, _TABLE_LIMIT)
    except confined.NotReadable as error:
        raise UnknownUser(str(error)) from error
    except OSError:
        return []  # Numbers need no table.
    rows = (line.split(":") for line in text.splitlines())
    return [row for row in rows if len(row) >= width]


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None
