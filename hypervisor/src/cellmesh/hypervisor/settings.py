"""What the hypervisor reads from CELLMESH_* at its start."""

from __future__ import annotations

import os
import re
import shutil
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from cellmesh.hypervisor.limits import Limits, RouteLimits
from cellmesh.mesh.settings import Settings

_OPERATOR_SOCKET = "operator.sock"
_EDGE = "edge"
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


class HypervisorSettings(Settings):
    """The settings of one node."""

    allowed_elsewhere: ClassVar[frozenset[str]] = frozenset({"CELLMESH_WAIT_BUDGET"})

    vmm: Path = Path("cloud-hypervisor")
    """The cloud-hypervisor binary; a bare name is looked up on PATH."""
    listen: str = Field(default="", pattern=r"^(.+:\d{1,5})?$")
    """`host:port` for other services, by mTLS; empty listens on the operator's socket only."""
    trust_domain: str = "cellmesh.internal"
    """The SPIFFE trust domain of this installation."""
    boot_timeout: timedelta = timedelta(seconds=180)
    """Seconds a guest may take from its start to its Hello; a guest on real hardware needs few."""
    heartbeat_interval: timedelta = timedelta(seconds=5)
    """Most seconds between two reports of an agent; after three without one it is asked whether it lives."""
    max_vms: int = Field(default=512, ge=1, le=100_000)
    """The most VMs the node takes, in any state."""
    memory_capacity_bytes: int = Field(default=0, ge=0)
    """The most memory the node promises to VMs that run; 0 is `memory_share` of the host's."""
    memory_share: float = Field(default=0.9, gt=0, le=64)
    """The share of the host's memory to promise; above 1 is overcommitment."""
    uid_base: int | None = Field(default=None, ge=1000, le=2**31)
    """The first of the uids VMs run under, one each; absent is 600000 for root, and no separation for anybody else."""
    edge_uid: int | None = Field(default=None, ge=1, le=2**31)
    """The uid the edge runs under; absent is the one below `uid_base` for root, and our own for anybody else."""
    edge_gid: int | None = Field(default=None, ge=1, le=2**31)
    """The group that may reach containers; absent is the edge's uid."""
    edge_listen: str = Field(default="", pattern=r"^(.+:\d{1,5})?$")
    """`host:port` where the edge serves browsers; empty writes nothing for an Envoy to start with."""
    edge_domains: str = Field(default="", pattern=r"^[a-z0-9.,-]*$")
    """Host names the edge answers to, with commas; empty is localhost and the host it listens on."""
    edge_tls: bool = True
    """Whether the edge speaks TLS; without, it can only listen on loopback."""
    edge_certificate: Path | None = None
    """The edge's certificate and what it is signed by, PEM; absent, with `edge_key`, is one of this host's own."""
    edge_key: Path | None = None
    """The key of `edge_certificate`, PEM."""
    edge_authorizer: Path | None = None
    """The socket of who decides about each request; absent is `authz.sock` in the edge's directory."""
    edge_limits: Limits = Limits()
    """Limits of the edge that are not to be the usual: a JSON object of their names, durations in seconds."""
    edge_route_limits: RouteLimits = RouteLimits()
    """Likewise, those of each route of each user."""
    stop_grace: timedelta = timedelta(seconds=5)
    """Seconds that calls may go on when the hypervisor stops."""

    @field_validator("boot_timeout", "heartbeat_interval", "stop_grace", mode="before")
    @classmethod
    def _seconds(cls, value: object) -> object:
        """Take a plain number for seconds; ISO 8601 durations are taken as well."""
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            return float(value)
        return value

    @field_validator("boot_timeout", "heartbeat_interval")
    @classmethod
    def _positive(cls, value: timedelta) -> timedelta:
        if value <= timedelta():
            raise ValueError("it must be longer than nothing")
        return value

    @field_validator("vmm")
    @classmethod
    def _found(cls, value: Path) -> Path:
        found = shutil.which(value)
        if found is None:
            raise ValueError(f"there is no program {value}; install cloud-hypervisor or give its path")
        return Path(found)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.edge_certificate is None) != (self.edge_key is None):
            raise ValueError("edge_certificate and edge_key are given together, or neither is")
        return self

    @property
    def operator_socket(self) -> Path:
        """Return where operators call."""
        return self.run_dir / _OPERATOR_SOCKET

    @property
    def edge_dir(self) -> Path:
        """Return where the sockets and files of the edge lie."""
        return self.run_dir / _EDGE

    @property
    def memory_to_promise(self) -> int:
        """Return the bytes of memory the node promises."""
        if self.memory_capacity_bytes:
            return self.memory_capacity_bytes
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * self.memory_share)

    @property
    def first_uid(self) -> int | None:
        """Return the first uid for VMs, or None where they cannot have their own."""
        if os.geteuid() != 0:
            return None
        return 600_000 if self.uid_base is None else self.uid_base

    @property
    def edge_user(self) -> int | None:
        """Return the uid of the edge, or None where it cannot have its own."""
        first = self.first_uid
        if first is None:
            return None
        return first - 1 if self.edge_uid is None else self.edge_uid

    @property
    def edge_group(self) -> int | None:
        """Return the group of the edge, or None where it cannot have its own."""
        if self.first_uid is None:
            return None
        return self.edge_user if self.edge_gid is None else self.edge_gid
