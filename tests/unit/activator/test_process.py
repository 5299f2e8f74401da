"""The activator is small in what it loads and reads, and so stays the hypervisor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cellmesh.hypervisor import node
from cellmesh.hypervisor.activator.server import listening
from cellmesh.hypervisor.activator.settings import ActivatorSettings
from cellmesh.hypervisor.settings import HypervisorSettings
from cellmesh.mesh.settings import SettingsFault


def _loaded(module: str) -> set[str]:
    """Return the packages a process has after importing a module."""
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_hypervisor_loads_no_http_server() -> None:
    """What speaks HTTP with strangers is in another process, and only there."""
    assert "aiohttp" not in _loaded("cellmesh.hypervisor.__main__")
    assert "aiohttp" in _loaded("cellmesh.hypervisor.activator.__main__")


def test_activator_loads_no_store() -> None:
    """It knows nothing of state, so nobody who takes it over does."""
    assert not {"sqlalchemy", "aiosqlite", "pysqlite3", "rich"} & _loaded("cellmesh.hypervisor.activator.__main__")


def test_both_live_in_one_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What one reads the other does not stumble over, and both mean the same sockets."""
    monkeypatch.setenv("CELLMESH_VMM", "/bin/true")
    monkeypatch.setenv("CELLMESH_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("CELLMESH_WAIT_BUDGET", "12.5")
    monkeypatch.setenv("CELLMESH_MAX_VMS", "7")
    ours, hypervisors = ActivatorSettings.load(), HypervisorSettings.load()
    assert ours.wait_budget == 12.5
    assert ours.edge_socket == hypervisors.edge_dir / node._EDGE_SOCKET
    assert ours.activator_socket == hypervisors.edge_dir / node._ACTIVATOR


def test_missing_directory_is_told_with_what_makes_it(tmp_path: Path) -> None:
    """Without a hypervisor before it the activator says what to do."""
    with (
        pytest.raises(FileNotFoundError, match="Start the hypervisor first"),
        listening(tmp_path / "no" / "s", gid=None),
    ):
        pytest.fail("listened nowhere")


def test_budget_is_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait of no seconds would call every wait a long one."""
    monkeypatch.setenv("CELLMESH_VMM", "/bin/true")
    monkeypatch.setenv("CELLMESH_WAIT_BUDGET", "0")
    with pytest.raises(SettingsFault, match="CELLMESH_WAIT_BUDGET"):
        ActivatorSettings.load()
