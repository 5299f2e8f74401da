"""A machine as the checks see it, and what they find."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from cellmesh.cli.settings import Settings


class Verdict(StrEnum):
    """How bad a finding is."""

    OK = "OK"
    WARN = "WARN"
    """VMs run, but less well or less isolated, or one command will not work."""
    FAIL = "FAIL"
    """No VM can run here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found."""

    name: str
    verdict: Verdict
    message: str
    """What there is, in a sentence."""
    fix: str = ""
    """The command that mends it, or the place where to; empty when all is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where the checks look; a test gives another machine."""

    search_path: str
    """Directories with programs, as in PATH."""
    vmm: str
    """Name or path of the VMM's program."""
    envoy: str
    """Name or path of Envoy's program; empty for the installed one."""
    edge_listen: str
    """Where the edge is to listen, as `host:port`."""
    run_dir: Path
    state_dir: Path
    uid: int
    kvm: Path = Path("/dev/kvm")
    cpuinfo: Path = Path("/proc/cpuinfo")
    cgroup_root: Path = Path("/sys/fs/cgroup")
    user_namespaces: Path = Path("/proc/sys/user/max_user_namespaces")

    @classmethod
    def here(cls, settings: Settings, environment: Mapping[str, str]) -> Self:
        """Return the machine this process runs on."""
        return cls(
            search_path=environment.get("PATH", ""),
            vmm=settings.vmm,
            envoy=settings.envoy,
            edge_listen=settings.edge_listen,
            run_dir=settings.run_dir,
            state_dir=settings.state_dir,
            uid=os.geteuid(),
        )
