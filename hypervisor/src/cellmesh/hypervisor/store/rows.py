"""Between the domain's values and rows; a VM's row is also its snapshot in the journal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from cellmesh.hypervisor.domain.container import Container, ContainerSpec, ContainerState, ContainerStatus, Health
from cellmesh.hypervisor.domain.route import Drain, Route, RouteTarget
from cellmesh.hypervisor.domain.vm import (
    ColdStart,
    DesiredState,
    Reason,
    RestartMode,
    RestartPolicy,
    UserId,
    Vm,
    VmId,
    VmSpec,
    VmState,
)
from cellmesh.service.store import from_micros, to_micros

Row = Mapping[str, Any]
_MICROSECOND = timedelta(microseconds=1)


def _optional(time: datetime | None) -> int | None:
    return None if time is None else to_micros(time)


def _moment(micros: int | None) -> datetime | None:
    return None if micros is None else from_micros(micros)


def vm_to_row(vm: Vm) -> dict[str, Any]:
    """Return the columns of a VM."""
    policy = vm.spec.restart_policy
    return {
        "vm_id": vm.vm_id,
        "user_id": vm.user_id,
        "guest_image": vm.spec.guest_image,
        "vcpus": vm.spec.vcpus,
        "memory_bytes": vm.spec.memory_bytes,
        "data_disk_bytes": vm.spec.data_disk_bytes,
        "restart_mode": policy.mode.value,
        "max_restarts": policy.max_restarts,
        "initial_backoff": policy.initial_backoff // _MICROSECOND,
        "max_backoff": policy.max_backoff // _MICROSECOND,
        "desired": vm.desired.value,
        "state": vm.state.value,
        "epoch": vm.epoch,
        "reason": vm.reason.value,
        "message": vm.message,
        "revision": vm.revision,
        "restart_count": vm.restart_count,
        "recycle_wished": vm.recycle_wished,
        "recycle_started": vm.recycle_started,
        "recycle_done": vm.recycle_done,
        "force_delete": vm.force_delete,
        "create_time": to_micros(vm.create_time),
        "update_time": to_micros(vm.update_time),
        "running_time": _optional(vm.running_time),
        "next_try_time": _optional(vm.next_try_time),
        "vmm_pid": vm.vmm_pid,
        "cold_start": vm.spec.cold_start.value,
    }


def vm_from_row(row: Row) -> Vm:
    """Return the VM of a row."""
    policy = RestartPolicy(
        mode=RestartMode(row["restart_mode"]),
        max_restarts=row["max_restarts"],
        initial_backoff=timedelta(microseconds=row["initial_backoff"]),
        max_backoff=timedelta(microseconds=row["max_backoff"]),
    )
    return Vm(
        vm_id=VmId(row["vm_id"]),
        user_id=UserId(row["user_id"]),
        spec=VmSpec(
            guest_image=row["guest_image"],
            vcpus=row["vcpus"],
            memory_bytes=row["memory_bytes"],
            data_disk_bytes=row["data_disk_bytes"],
            restart_policy=policy,
            # What an older hypervisor wrote into the journal has no such field.
            cold_start=ColdStart(row.get("cold_start", ColdStart.ON_REQUEST)),
        ),
        desired=DesiredState(row["desired"]),
        state=VmState(row["state"]),
        epoch=row["epoch"],
        reason=Reason(row["reason"]),
        message=row["message"],
        revision=row["revision"],
        restart_count=row["restart_count"],
        recycle_wished=row["recycle_wished"],
        recycle_started=row["recycle_started"],
        recycle_done=row["recycle_done"],
        force_delete=bool(row["force_delete"]),
        create_time=from_micros(row["create_time"]),
        update_time=from_micros(row["update_time"]),
        running_time=_moment(row["running_time"]),
        next_try_time=_moment(row["next_try_time"]),
        vmm_pid=row["vmm_pid"],
    )


def vm_to_json(vm: Vm) -> str:
    """Return a VM as it is kept in the journal."""
    return json.dumps(vm_to_row(vm), separators=(",", ":"))


def vm_from_json(document: str) -> Vm:
    """Return the VM of `vm_to_json`."""
    return vm_from_row(json.loads(document))


def container_to_row(container: Container) -> dict[str, Any]:
    """Return the columns of a container."""
    status = container.status
    return {
        "vm_id": container.vm_id,
        "name": container.name,
        "image": container.spec.image,
        "stop_grace": container.spec.stop_grace // _MICROSECOND,
        "document": container.spec.document,
        "wanted": container.wanted,
        "generation": container.generation,
        "epoch": container.epoch,
        "state": status.state.value,
        "health": status.health.value,
        "exit_code": status.exit_code,
        "restart_count": status.restart_count,
        "oom_kills": status.oom_kills,
        "reason": status.reason,
        "message": status.message,
        "start_time": _optional(status.start_time),
        "create_time": to_micros(container.create_time),
        "update_time": to_micros(container.update_time),
        "ingress_slot": container.ingress_slot,
    }


def container_from_row(row: Row) -> Container:
    """Return the container of a row."""
    return Container(
        vm_id=VmId(row["vm_id"]),
        name=row["name"],
        spec=ContainerSpec(
            image=row["image"],
            stop_grace=timedelta(microseconds=row["stop_grace"]),
            document=row["document"],
        ),
        wanted=bool(row["wanted"]),
        generation=row["generation"],
        epoch=row["epoch"],
        ingress_slot=row["ingress_slot"],
        status=ContainerStatus(
            state=ContainerState(row["state"]),
            health=Health(row["health"]),
            exit_code=row["exit_code"],
            restart_count=row["restart_count"],
            oom_kills=row["oom_kills"],
            reason=row["reason"],
            message=row["message"],
            start_time=_moment(row["start_time"]),
        ),
        create_time=from_micros(row["create_time"]),
        update_time=from_micros(row["update_time"]),
    )


def route_to_row(route: Route) -> dict[str, Any]:
    """Return the columns of a route."""
    return {
        "vm_id": route.vm_id,
        "prefix": route.prefix,
        "container": route.target.container,
        "generation": route.target.generation,
        "revision": route.revision,
        "update_time": to_micros(route.update_time),
    }


def route_from_row(row: Row) -> Route:
    """Return the route of a row."""
    return Route(
        vm_id=VmId(row["vm_id"]),
        prefix=row["prefix"],
        target=RouteTarget(container=row["container"], generation=row["generation"]),
        revision=row["revision"],
        update_time=from_micros(row["update_time"]),
    )


def drain_to_row(drain: Drain) -> dict[str, Any]:
    """Return the columns of a drain."""
    return {
        "vm_id": drain.vm_id,
        "prefix": drain.prefix,
        "container": drain.container,
        "generation": drain.generation,
        "due": to_micros(drain.due),
    }


def drain_from_row(row: Row) -> Drain:
    """Return the drain of a row."""
    return Drain(
        vm_id=VmId(row["vm_id"]),
        prefix=row["prefix"],
        container=row["container"],
        generation=row["generation"],
        due=from_micros(row["due"]),
    )
