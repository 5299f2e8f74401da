"""The hypervisor's settings, as they are written in an environment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from cellmesh.hypervisor.settings import HypervisorSettings
from cellmesh.mesh.settings import SettingsFault


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Give an environment with a VMM that can be run."""
    binary = tmp_path / "cloud-hypervisor"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("CELLMESH_VMM", str(binary))
    return monkeypatch


@pytest.mark.parametrize(("written", "seconds"), [("90", 90), ("0.5", 0.5), ("PT2M", 120)])
def test_durations_are_seconds(environment: pytest.MonkeyPatch, written: str, seconds: float) -> None:
    """A plain number is seconds, and ISO 8601 is taken too."""
    environment.setenv("CELLMESH_BOOT_TIMEOUT", written)
    assert HypervisorSettings.load().boot_timeout == timedelta(seconds=seconds)


def test_every_fault_is_told_at_once(environment: pytest.MonkeyPatch) -> None:
    """A wrong value, a missing program and an unknown name stand in one message."""
    environment.setenv("CELLMESH_VMM", "/nowhere/cloud-hypervisor")
    environment.setenv("CELLMESH_HEARTBEAT_INTERVAL", "0")
    environment.setenv("CELLMESH_HEARTBEET", "5")
    with pytest.raises(SettingsFault) as fault:
        HypervisorSettings.load()
    for word in ("/nowhere/cloud-hypervisor", "CELLMESH_HEARTBEAT_INTERVAL", "CELLMESH_HEARTBEET"):
        assert word in str(fault.value)


def test_memory_to_promise_is_a_share_of_the_host_unless_it_is_said(environment: pytest.MonkeyPatch) -> None:
    """Without a number the node promises its share of the host's memory."""
    environment.setenv("CELLMESH_MEMORY_SHARE", "0.5")
    half = HypervisorSettings.load().memory_to_promise
    environment.setenv("CELLMESH_MEMORY_SHARE", "1")
    assert abs(HypervisorSettings.load().memory_to_promise - 2 * half) <= 1
    environment.setenv("CELLMESH_MEMORY_CAPACITY_BYTES", "1048576")
    assert HypervisorSettings.load().memory_to_promise == 1 << 20
