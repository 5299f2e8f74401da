"""The kernel's machine-wide limits, and the memory kept from containers."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from cellmesh.guest import boot, pools

MIB = 1 << 20


def test_every_setting_is_written_and_a_missing_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without one of the settings still gets the others, and the console says which is missing."""
    limits: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(pools, "_SYSCTL", tmp_path)
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    for directory in ("fs/inotify", "kernel/pty"):
        (tmp_path / directory).mkdir(parents=True)
    missing = pools.set_pools()
    assert {line.rsplit(" ", 1)[1] for line in missing} == {
        "net/core/rmem_max", "net/core/rmem_default", "net/core/optmem_max"
    }  # fmt: skip
    assert int((tmp_path / "fs/file-max").read_text()) == 2**63 - 1
    shared = int((tmp_path / "kernel/pty/max").read_text()) - int((tmp_path / "kernel/pty/reserve").read_text())
    assert shared == 16 * pools.PTYS_PER_CONTAINER
    assert limits[resource.RLIMIT_SIGPENDING] == (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@pytest.mark.parametrize(("total", "kept"), [(100, 54), (470, 77), (4096, 304)])
def test_containers_never_get_all_memory(total: int, kept: int) -> None:
    """What the agent and the kernel keep grows with the machine, and leaves room even in the smallest one."""
    assert (total * MIB - boot.memory_for_containers(total * MIB)) // MIB == kept
