"""VMs as values, for tests of what is done with them."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from cellmesh.hypervisor.domain.container import Container, ContainerSpec, ContainerStatus
from cellmesh.hypervisor.domain.vm import DesiredState, UserId, Vm, VmId, VmSpec, VmState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def make_vm(**fields: object) -> Vm:
    """Return a VM, PENDING and wanted RUNNING unless said otherwise."""
    usual: dict[str, object] = {
        "vm_id": VmId(str(uuid.uuid4())),
        "user_id": UserId(str(uuid.uuid4())),
        "spec": VmSpec(guest_image=f"sha256:{'a' * 64}"),
        "desired": DesiredState.RUNNING,
        "state": VmState.PENDING,
        "create_time": NOW,
        "update_time": NOW,
    }
    return Vm(**{**usual, **fields})  # type: ignore[arg-type]  # a test says which fields it means


def make_container(vm_id: str, name: str = "app", **fields: object) -> Container:
    """Return a container that waits for its first start unless said otherwise."""
    usual: dict[str, object] = {
        "vm_id": VmId(vm_id),
        "name": name,
        "spec": ContainerSpec(image=f"sha256:{'b' * 64}", stop_grace=NOW - NOW, document=b""),
        "wanted": True,
        "generation": 1,
        "epoch": 0,
        "ingress_slot": 0,
        "status": ContainerStatus(),
        "create_time": NOW,
        "update_time": NOW,
    }
    return Container(**{**usual, **fields})  # type: ignore[arg-type]  # a test says which fields it means
