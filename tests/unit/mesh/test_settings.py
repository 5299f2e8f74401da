"""Settings are read once, and every fault in them is told at once."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field, ValidationError

from cellmesh.mesh.settings import Settings, SettingsFault


class ServiceSettings(Settings):
    """Settings of some service."""

    allowed_elsewhere: ClassVar[frozenset[str]] = frozenset({"CELLMESH_OF_ANOTHER"})

    max_vms: int = 10
    """Most VMs."""
    bounds: dict[str, int] = Field(default_factory=dict)
    """Bounds by name."""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("CELLMESH_"):
            monkeypatch.delenv(name)


def test_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names have the prefix, values become what the field is, and cannot be changed after."""
    monkeypatch.setenv("CELLMESH_RUN_DIR", "/run/x")
    monkeypatch.setenv("CELLMESH_MAX_VMS", "500")
    monkeypatch.setenv("CELLMESH_OF_ANOTHER", "1")
    settings = ServiceSettings.load()
    assert (settings.run_dir, settings.max_vms, settings.log_level) == (Path("/run/x"), 500, "INFO")
    with pytest.raises(ValidationError, match="frozen"):
        settings.max_vms = 1  # type: ignore[misc]  # that is what is tested


def test_every_fault_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad values and names nobody knows come in one message, and no value is repeated in it."""
    monkeypatch.setenv("CELLMESH_MAX_VMS", "canary")
    monkeypatch.setenv("CELLMESH_LOG_LEVEL", "LOUD")
    monkeypatch.setenv("CELLMESH_RUNDIR", "/typo")
    with pytest.raises(SettingsFault) as fault:
        ServiceSettings.load()
    lines = str(fault.value).splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == ["CELLMESH_LOG_LEVEL", "CELLMESH_MAX_VMS", "CELLMESH_RUNDIR"]
    assert "canary" not in str(fault.value)


@pytest.mark.parametrize(
    ("value", "told"),
    [('{"a": "x"}', "CELLMESH_BOUNDS.a: "), ("{", "CELLMESH_BOUNDS: it is no JSON."), ("[]", "CELLMESH_BOUNDS: ")],
)
def test_fault_within_an_object_is_named(value: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is an object says which part of it is wrong, or that it is no JSON."""
    monkeypatch.setenv("CELLMESH_BOUNDS", value)
    with pytest.raises(SettingsFault, match=re.escape(told)):
        ServiceSettings.load()


def test_every_setting_is_described() -> None:
    """Each field has its sentence."""
    assert [name for name, field in ServiceSettings.model_fields.items() if not field.description] == []
