"""What an image's disk says of itself: how to start and stop it, and as which user."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path

from cellmesh.guest.containers import confined
from cellmesh.guest.containers.users import UnknownUser, User, find_user

_CONFIG = ".cellmesh/config.json"
_CONFIG_LIMIT = 2 << 20
_LAST_SIGNAL = 64


class BadImage(Exception):
    """The image's own description cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How an image wants to be started, and the number of the signal that stops it."""

    argv: tuple[str, ...]
    cmd: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    working_dir: str
    user: User
    stop_signal: int = signal.SIGTERM


def read_image(mounted: Path) -> ImageConfig:
    """Read the description of an image mounted here; raises BadImage."""
    try:
        config = json.loads(confined.read_file(mounted, _CONFIG, _CONFIG_LIMIT))
    except (OSError, ValueError, RecursionError, confined.NotReadable) as error:
        raise BadImage(f"the image has no readable .cellmesh/config.json: {error}") from error
    if not isinstance(config, dict):
        raise BadImage("the image's .cellmesh/config.json is not an object")
    return ImageConfig(
        argv=_strings(config, "entrypoint"),
        cmd=_strings(config, "cmd"),
        environment=tuple(_variable(entry) for entry in _strings(config, "env")),
        working_dir=_string(config, "working_dir") or "/",
        user=_user(_string(config, "user"), mounted / "rootfs"),
        stop_signal=_stop_signal(config),
    )


def _stop_signal(config: dict[str, object]) -> int:
    number = config.get("stop_signal", int(signal.SIGTERM))
    if not isinstance(number, int) or not 1 <= number <= _LAST_SIGNAL:
        raise BadImage(f"stop_signal in the image's {_CONFIG} is not a signal from 1 to {_LAST_SIGNAL}")
    return number


def _user(user: str, root: Path) -> User:
    try:
        return find_user(user, root)
    except UnknownUser as error:
        raise BadImage(f"the image's {error}") from error


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
