"""How an image wants to be run: its configuration document, checked so that the agent can start what was imported."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cellmesh.image.errors import ArchiveInvalid
from cellmesh.image.limits import MAX_CONFIG, MAX_ID, MAX_STRING, MAX_STRINGS, MAX_WORDS, POINTER
from cellmesh.image.manifest import DEFAULT_STOP_SIGNAL, ContainerConfig, canonical

REAL_TIME_FIRST, REAL_TIME_LAST = 34, 64  # as glibc counts them, and every container tool
_SIGNAL = re.compile(r"(?:SIG)?([A-Z]+[0-9]?|RTM(?:IN|AX))(?:([+-])([0-9]{1,2}))?", re.ASCII)


def read_config(document: Mapping[str, Any]) -> ContainerConfig:
    """Return how an image wants to be run; raises ArchiveInvalid for what no process could be started with."""
    settings = document.get("config") or {}
    if not isinstance(settings, dict):
        raise ArchiveInvalid("config", "it is no JSON object.")
    ports = settings.get("ExposedPorts") or {}
    if not isinstance(ports, dict):
        raise ArchiveInvalid("config", "ExposedPorts is no JSON object.")
    config = ContainerConfig(
        entrypoint=_words(settings, "Entrypoint"),
        cmd=_words(settings, "Cmd"),
        env=_variables(_words(settings, "Env")),
        working_dir="/" + _word(settings, "WorkingDir").lstrip("/"),
        user=_user(_word(settings, "User")),
        exposed_ports=_words({"ExposedPorts": sorted(ports)}, "ExposedPorts"),
        stop_signal=stop_signal(_word(settings, "StopSignal")),
    )
    _check_total(config)
    return config


def about(config: ContainerConfig) -> bytes:
    """Return the document that the agent reads; raises ArchiveInvalid if it is larger than the agent reads."""
    written = canonical(asdict(config))
    if len(written) > MAX_CONFIG:
        raise ArchiveInvalid(
            "config", f"written as JSON it has {len(written)} bytes, {MAX_CONFIG} are allowed; give the image less."
        )
    return written


def stop_signal(text: str) -> int:
    """Return the number of `15`, `SIGQUIT`, `quit` or `SIGRTMIN+3`, SIGTERM for nothing; raises ArchiveInvalid."""
    if not text:
        return DEFAULT_STOP_SIGNAL
    number = int(text) if re.fullmatch("[0-9]{1,3}", text, re.ASCII) else _named_signal(text.upper())
    if number is None or not 1 <= number <= REAL_TIME_LAST:
        raise ArchiveInvalid(
            "config", f"StopSignal {text!r:.60} is no signal; write a name such as SIGQUIT or 1 to 64."
        )
    return number


def _named_signal(text: str) -> int | None:
    match = _SIGNAL.fullmatch(text)
    if match is None:
        return None
    name, sign, offset = match[1], match[2], int(match[3] or 0)
    if name in {"RTMIN", "RTMAX"}:
        number = REAL_TIME_FIRST + offset if name == "RTMIN" else REAL_TIME_LAST - offset
        is_sound = sign in {None, "+" if name == "RTMIN" else "-"} and REAL_TIME_FIRST <= number <= REAL_TIME_LAST
        return number if is_sound else None
    known = signal.Signals.__members__.get(f"SIG{name}")
    return None if known is None or sign else int(known)


def _variables(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the entries that are NAME=value; old builders wrote names without a value, which set nothing."""
    return tuple(word for word in words if word.find("=") > 0)


def _user(text: str) -> str:
    for part in text.split(":"):
        if part.isdecimal() and int(part[:20]) > MAX_ID:
            raise ArchiveInvalid("config", f"User {text!r:.60} is outside the {MAX_ID + 1} ids that a container has.")
    return text


def _check_total(config: ContainerConfig) -> None:
    """Refuse what execve(2) would refuse, when the image is imported and not when it is started."""
    strings = (*config.entrypoint, *config.cmd, *config.env)
    total = sum(len(string.encode()) + 1 + POINTER for string in strings)
    if total > MAX_STRINGS:
        raise ArchiveInvalid(
            "config",
            f"arguments and environment have {total} bytes, {MAX_STRINGS} can be started; give the image less.",
        )


def _words(settings: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = settings.get(name) or []
    if not isinstance(value, list) or len(value) > MAX_WORDS:
        raise ArchiveInvalid("config", f"{name} is no array of at most {MAX_WORDS} texts.")
    return tuple(_checked(word, name) for word in value)


def _word(settings: Mapping[str, Any], name: str) -> str:
    return _checked(settings.get(name) or "", name)


def _checked(word: object, name: str) -> str:
    if isinstance(word, str) and "\0" not in word and len(word) <= MAX_STRING:
        try:
            if len(word.encode()) <= MAX_STRING:
                return word
        except UnicodeEncodeError as error:
            raise ArchiveInvalid("config", f"{name} has a text with half a surrogate pair.") from error
    raise ArchiveInvalid("config", f"{name} has something that is no text of at most {MAX_STRING} bytes.")
