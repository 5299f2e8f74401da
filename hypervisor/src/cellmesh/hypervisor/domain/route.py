"""A route: the path prefix of a VM's owner, the container it leads to, and what a request for it gets now."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cellmesh.hypervisor.domain.container import Container, ContainerState, Health
from cellmesh.hypervisor.domain.vm import ColdStart, DesiredState, Reason, UserId, Vm, VmId, VmState

LIVE, DEV = "live", "dev"
"""What the edge calls the routes that every VM has."""
_NAMED = "/_/"
# Prefix, slot and container of the routes every VM has.
_DEFAULTS = (("/", LIVE, "sandbox-live"), ("/dev/", DEV, "sandbox-dev"))
_SLOTS = {prefix: slot for prefix, slot, _ in _DEFAULTS}
_DEFAULT_CONTAINERS = frozenset(container for _, _, container in _DEFAULTS)


class RouteState(enum.Enum):
    """What requests for a route get; the names are the contract's."""

    SERVING = "SERVING"
    WAITING = "WAITING"


class WaitReason(enum.StrEnum):
    """What requests for a route wait for."""

    VM_STOPPED = "VM_STOPPED"
    VM_STARTING = "VM_STARTING"
    VM_RESTARTING = "VM_RESTARTING"
    VM_STOPPING = "VM_STOPPING"
    VM_FAILED = "VM_FAILED"
    VM_QUARANTINED = "VM_QUARANTINED"
    VM_DELETING = "VM_DELETING"
    NODE_DRAINING = "NODE_DRAINING"
    CONTAINER_NOT_FOUND = "CONTAINER_NOT_FOUND"
    CONTAINER_STOPPED = "CONTAINER_STOPPED"
    CONTAINER_STARTING = "CONTAINER_STARTING"
    CONTAINER_RESTARTING = "CONTAINER_RESTARTING"
    CONTAINER_UNHEALTHY = "CONTAINER_UNHEALTHY"
    CONTAINER_FAILED = "CONTAINER_FAILED"
    GENERATION_NOT_FOUND = "GENERATION_NOT_FOUND"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTarget:
    """Where a route leads: a container, in one generation only, or (0) through all of them."""

    container: str
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route as stored."""

    vm_id: VmId
    prefix: str
    target: RouteTarget
    revision: int
    update_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """What is to be closed: connections by a route to the generation of a container that it has left."""

    vm_id: VmId
    prefix: str
    container: str
    generation: int
    due: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStatus:
    """What requests for a route get. `epoch` and `generation` are those that answer, 0 while nobody does."""

    state: RouteState
    epoch: int = 0
    generation: int = 0
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentRoute:
    """A route, whose it is, and what requests for it get."""

    route: Route
    user_id: UserId
    status: RouteStatus


def slot_of(prefix: str) -> str:
    """Return what the edge calls a prefix: `live`, `dev`, or `_<name>`."""
    return _SLOTS.get(prefix) or f"_{prefix.removeprefix(_NAMED).removesuffix('/')}"


def cluster_of(user_id: str, prefix: str) -> str:
    """Return the name of the edge's cluster for a route."""
    return f"{user_id}/{slot_of(prefix)}"


def default_routes(vm_id: VmId, now: datetime) -> Sequence[Route]:
    """Return the routes a new VM gets."""
    return [_new(vm_id, prefix, container, now) for prefix, _, container in _DEFAULTS]


def route_of_container(vm_id: VmId, name: str, now: datetime) -> Route | None:
    """Return the route a container gets when it is first started; None for one that the default routes lead to."""
    return None if name in _DEFAULT_CONTAINERS else _new(vm_id, f"{_NAMED}{name}/", name, now)


def _new(vm_id: VmId, prefix: str, container: str, now: datetime) -> Route:
    return Route(vm_id=vm_id, prefix=prefix, target=RouteTarget(container=container), revision=1, update_time=now)


def current(route: Route, vm: Vm, container: Container | None) -> CurrentRoute:
    """Return a route as it is, given its VM and the container it leads to (None: there is none of that name)."""
    return CurrentRoute(route=route, user_id=vm.user_id, status=_status(route.target, vm, container))


def _status(target: RouteTarget, vm: Vm, container: Container | None) -> RouteStatus:
    if vm.state is not VmState.RUNNING or vm.desired is not DesiredState.RUNNING:
        return _of_vm(vm)
    if container is None:
        return _waiting(
            WaitReason.CONTAINER_NOT_FOUND, f"There is no container {target.container} yet; start it, or switch."
        )
    if target.generation not in (0, container.generation):
        return _waiting(
            WaitReason.GENERATION_NOT_FOUND,
            f"Generation {target.generation} of container {container.name} is over, it has generation "
            f"{container.generation} now; switch the route.",
        )
    # One that is wanted no longer may still run for its grace; new requests have no business there.
    if not container.wanted:
        return _waiting(WaitReason.CONTAINER_STOPPED, f"Container {container.name} was stopped; start it, or switch.")
    return _of_container(vm, container)


def _of_vm(vm: Vm) -> RouteStatus:
    said = f" {vm.message}" if vm.message else ""
    if vm.desired is DesiredState.DELETED or vm.state is VmState.DELETING:
        return _waiting(WaitReason.VM_DELETING, "The VM is being deleted.")
    if vm.state is VmState.QUARANTINED:
        return _waiting(WaitReason.VM_QUARANTINED, f"The VM is QUARANTINED.{said}")
    if vm.desired is DesiredState.STOPPED:
        if vm.state is not VmState.STOPPED:
            return _waiting(WaitReason.VM_STOPPING, "The VM is being stopped; ask again when it is.")
        if vm.spec.cold_start is ColdStart.NEVER:
            return _waiting(WaitReason.VM_STOPPED, "The VM is stopped, and only StartVm starts it.")
        return _waiting(WaitReason.VM_STOPPED, "The VM is stopped; a request to it starts it.")
    if vm.state is VmState.FAILED:
        return _waiting(WaitReason.VM_FAILED, f"The VM FAILED.{said}")
    if vm.state in {VmState.BACKOFF, VmState.STOPPING}:
        return _waiting(WaitReason.VM_RESTARTING, f"The VM is being restarted.{said}")
    return _waiting(WaitReason.VM_STARTING, f"The VM is starting.{said}")


def _of_container(vm: Vm, container: Container) -> RouteStatus:
    status, name = container.status, container.name
    said = f" {status.message}" if status.message else ""
    match status.state:
        case ContainerState.RUNNING if container.epoch == vm.epoch and status.health is Health.SERVING:
            return RouteStatus(state=RouteState.SERVING, epoch=vm.epoch, generation=container.generation)
        case ContainerState.RUNNING if container.epoch == vm.epoch and status.health is Health.NOT_SERVING:
            message = f"Container {name} runs, and its probe says that it is not well; read its log."
            return _waiting(WaitReason.CONTAINER_UNHEALTHY, message)
        case ContainerState.FAILED:
            message = f"Container {name} FAILED.{said} Read its log, correct its image or spec, and start it again."
            return _waiting(WaitReason.CONTAINER_FAILED, message)
        case ContainerState.STOPPED:
            message = f"Container {name} has ended with exit code {status.exit_code}.{said} Start it again."
            return _waiting(WaitReason.CONTAINER_STOPPED, message)
        case ContainerState.BACKOFF | ContainerState.STOPPING:
            return _waiting(WaitReason.CONTAINER_RESTARTING, f"Container {name} is being restarted.{said}")
        case _:
            # One that runs, and whose probe has not answered yet, does not take connections yet either.
            return _waiting(WaitReason.CONTAINER_STARTING, f"Container {name} is starting.")


def _waiting(reason: WaitReason, message: str) -> RouteStatus:
    return RouteStatus(state=RouteState.WAITING, reason=reason.value, message=message)


_SOON = timedelta(seconds=1)
_LATER = timedelta(seconds=5)
# What comes to an end by itself; for the rest somebody has to act.
_PASSING = {
    WaitReason.VM_STARTING: _SOON,
    WaitReason.VM_RESTARTING: _SOON,
    WaitReason.VM_STOPPING: _SOON,
    WaitReason.CONTAINER_STARTING: _SOON,
    WaitReason.CONTAINER_RESTARTING: _SOON,
    WaitReason.CONTAINER_UNHEALTHY: _LATER,
}


def retry_after(status: RouteStatus, vm: Vm, now: datetime) -> timedelta | None:
    """Return when asking again makes sense; None if it does not until somebody acts, or if the route serves."""
    pause = _PASSING.get(WaitReason(status.reason)) if status.reason else None
    if pause is None:
        return None
    if vm.reason is Reason.NODE_FULL:
        return _LATER
    if vm.state is VmState.BACKOFF and vm.next_try_time is not None:
        return max(vm.next_try_time - now, pause)
    return pause
