"""Settings: read once from CELLMESH_* at the start, frozen, every fault told at once."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

PREFIX = "CELLMESH_"
# How pydantic-settings names what it could not read.
_FIELD = re.compile(r'field "(\w+)"')


class SettingsFault(ValueError):
    """Settings that cannot be used; the message has one line for each fault."""


class Settings(BaseSettings):
    """What every service reads; a service adds its own fields."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        case_sensitive=False,
        use_attribute_docstrings=True,
        validate_default=True,
        hide_input_in_errors=True,
    )

    allowed_elsewhere: ClassVar[frozenset[str]] = frozenset()
    """Names of CELLMESH_* that other programs of ours read from the same environment."""

    run_dir: Path = Path("/run/cellmesh")
    """Where sockets lie; emptied by a reboot."""
    state_dir: Path = Path("/var/lib/cellmesh")
    """Where what must survive lies."""
    otlp_endpoint: str | None = None
    """Where traces go, such as `http://127.0.0.1:4317`; none are recorded without it."""
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """Least important log line to write."""
    failpoint: str | None = None
    """For tests: where to die."""

    @classmethod
    def load(cls) -> Self:
        """Return the settings in the environment; raise SettingsFault with every fault."""
        faults = [f"{name}: there is no such setting." for name in cls._unknown()]
        try:
            settings = cls()
        except ValidationError as error:
            faults += [
                f"{_name(fault['loc'])}: {fault['msg']}."
                for fault in error.errors(include_url=False, include_input=False, include_context=False)
            ]
        except SettingsError as error:
            faults.append(f"{_name(tuple(_FIELD.findall(str(error))))}: it is no JSON.")
        if faults:
            raise SettingsFault("The settings cannot be used:\n" + "\n".join(sorted(faults)))
        return settings

    @classmethod
    def _unknown(cls) -> list[str]:
        known = {f"{PREFIX}{name.upper()}" for name in cls.model_fields} | cls.allowed_elsewhere
        return [name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known]


def _name(location: tuple[int | str, ...]) -> str:
    """Return the variable of a fault, and what in it is meant if it is an object."""
    return ".".join((f"{PREFIX}{location[0]}".upper(), *map(str, location[1:]))) if location else PREFIX
