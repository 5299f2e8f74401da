"""VMs, containers, routes and events as cells and lines."""

from __future__ import annotations

import time
from typing import Protocol

from cellmesh.api.common.v1 import container_pb2 as common_container_pb2
from cellmesh.api.common.v1 import health_pb2
from cellmesh.api.hypervisor.v1 import container_pb2, event_pb2, route_pb2, vm_pb2
from cellmesh.cli import units
from cellmesh.cli.output import Cell

VM_COLUMNS = ("VM", "USER", "STATE", "EPOCH", "CPUS", "MEMORY", "AGE", "REASON")
CONTAINER_COLUMNS = ("CONTAINER", "STATE", "HEALTH", "GENERATION", "RESTARTS", "OOM", "EXIT", "AGE", "REASON")
ROUTE_COLUMNS = ("VM", "PREFIX", "LEADS_TO", "STATE", "EPOCH", "GENERATION", "REVISION", "AGE", "REASON")
_STYLES = {
    "RUNNING": "green",
    "SERVING": "green",
    "OK": "green",
    "PENDING": "cyan",
    "STARTING": "cyan",
    "STOPPING": "cyan",
    "DELETING": "cyan",
    "BACKOFF": "yellow",
    "WAITING": "yellow",
    "SWITCHED": "green",
    "REFUSED": "red",
    "WARN": "yellow",
    "NOT_SERVING": "red",
    "FAILED": "red",
    "FAIL": "red",
    "QUARANTINED": "red",
    "STOPPED": "dim",
    "DELETED": "dim",
}
SHORT_ID = 12
# What the contracts take 0 for.
_ON_REQUEST = vm_pb2.COLD_START_ON_REQUEST
_HTTP_PORT = 8080


class _Enum(Protocol):
    """What a generated enum can do."""

    def Name(self, number: int, /) -> str:
        """Return the name of a number."""


def _name(enum: _Enum, prefix: str, number: int) -> str:
    try:
        return enum.Name(number).removeprefix(prefix)
    except ValueError:
        # A newer node may know states that this command does not.
        return f"OTHER_{number}"


def vm_state(number: int) -> str:
    """Return the short name of a VmState."""
    return _name(vm_pb2.VmState, "VM_STATE_", number)


def container_state(number: int) -> str:
    """Return the short name of a ContainerState."""
    return _name(common_container_pb2.ContainerState, "CONTAINER_STATE_", number)


def health(number: int) -> str:
    """Return the short name of a HealthStatus."""
    return _name(health_pb2.HealthStatus, "HEALTH_STATUS_", number)


def route_state(number: int) -> str:
    """Return the short name of a RouteState."""
    return _name(route_pb2.RouteState, "ROUTE_STATE_", number)


def styled(name: str) -> Cell:
    """Return a state's name in its colour."""
    return Cell(text=name, style=_STYLES.get(name, ""))


def vm_row(vm: vm_pb2.Vm) -> list[Cell]:
    """Return a VM's row under VM_COLUMNS."""
    return [
        Cell(text=vm.vm_id[:SHORT_ID]),
        Cell(text=vm.user_id),
        styled(vm_state(vm.state)),
        Cell(text=str(vm.epoch)),
        Cell(text=str(vm.spec.vcpus)),
        Cell(text=units.size(vm.spec.memory_bytes).replace(" ", "")),
        Cell(text=units.age(vm.create_time, time.time())),
        Cell(text=vm.reason),
    ]


def vm_fields(vm: vm_pb2.Vm) -> list[tuple[str, Cell]]:
    """Return everything a person wants to know of a VM, name by name."""
    desired = _name(vm_pb2.DesiredState, "DESIRED_STATE_", vm.desired_state)
    fields = [
        ("vm", Cell(text=vm.vm_id)),
        ("user", Cell(text=vm.user_id)),
        ("state", styled(vm_state(vm.state))),
        ("wanted", Cell(text=desired)),
        ("reason", Cell(text=vm.reason)),
        ("message", Cell(text=vm.message)),
        ("epoch", Cell(text=str(vm.epoch))),
        ("restarts", Cell(text=str(vm.restart_count))),
        ("vcpus", Cell(text=str(vm.spec.vcpus))),
        ("memory", Cell(text=units.size(vm.spec.memory_bytes))),
        ("data disk", Cell(text=units.size(vm.spec.data_disk_bytes))),
        ("cold start", Cell(text=_name(vm_pb2.ColdStart, "COLD_START_", vm.spec.cold_start or _ON_REQUEST))),
        ("guest image", Cell(text=vm.spec.guest_image)),
        ("vmm pid", Cell(text=str(vm.vmm_pid or ""))),
        ("created", Cell(text=units.clock(vm.create_time))),
        ("running since", Cell(text=units.clock(vm.running_time) if vm.running_time.seconds else "")),
    ]
    return [(name, cell) for name, cell in fields if cell.text]


def status_row(status: common_container_pb2.ContainerStatus) -> list[Cell]:
    """Return a container's row under CONTAINER_COLUMNS."""
    ended = status.state in (
        common_container_pb2.CONTAINER_STATE_STOPPED,
        common_container_pb2.CONTAINER_STATE_BACKOFF,
        common_container_pb2.CONTAINER_STATE_FAILED,
    )
    return [
        Cell(text=status.container_name),
        styled(container_state(status.state)),
        styled(health(status.health)),
        Cell(text=str(status.generation)),
        Cell(text=str(status.restart_count)),
        Cell(text=str(status.oom_kills)),
        Cell(text=str(status.exit_code) if ended else ""),
        Cell(text=units.age(status.start_time, time.time())),
        Cell(text=status.reason),
    ]


def container_row(container: container_pb2.Container) -> list[Cell]:
    """Return a container's row under CONTAINER_COLUMNS, its name and generation as the node knows them."""
    row = status_row(container.status)
    row[0] = Cell(text=container.container_name)
    row[3] = Cell(text=str(container.generation))
    return row


def container_fields(container: container_pb2.Container) -> list[tuple[str, Cell]]:
    """Return everything a person wants to know of a container, name by name."""
    spec, status = container.spec, container.status
    fields = [
        ("container", Cell(text=container.container_name)),
        ("vm", Cell(text=container.vm_id)),
        ("state", styled(container_state(status.state))),
        ("wanted", Cell(text=container_state(container.desired_state))),
        ("health", styled(health(status.health))),
        ("reason", Cell(text=status.reason)),
        ("message", Cell(text=status.message)),
        ("generation", Cell(text=str(container.generation))),
        ("epoch", Cell(text=str(container.epoch))),
        ("restarts", Cell(text=str(status.restart_count))),
        ("oom kills", Cell(text=str(status.oom_kills))),
        ("image", Cell(text=spec.image)),
        ("command", Cell(text=" ".join(spec.argv))),
        ("memory", Cell(text=units.size(spec.resources.memory_bytes))),
        ("cpu", Cell(text=f"{spec.resources.cpu_millis / 1000:g} cores")),
        ("pids", Cell(text=str(spec.resources.pids))),
        ("http port", Cell(text=str(spec.http_port or _HTTP_PORT))),
        ("keeps", Cell(text=" ".join(path.path for path in spec.persistent_paths))),
        ("created", Cell(text=units.clock(container.create_time))),
    ]
    return [(name, cell) for name, cell in fields if cell.text]


def target(target: route_pb2.RouteTarget) -> str:
    """Return where a route leads: a container, or one generation of it."""
    return f"{target.container_name}@{target.generation}" if target.generation else target.container_name


def route_row(route: route_pb2.Route) -> list[Cell]:
    """Return a route's row under ROUTE_COLUMNS."""
    return [
        Cell(text=route.vm_id[:SHORT_ID]),
        Cell(text=route.prefix),
        Cell(text=target(route.target)),
        styled(route_state(route.state)),
        Cell(text=str(route.epoch or "")),
        Cell(text=str(route.generation or "")),
        Cell(text=str(route.revision)),
        Cell(text=units.age(route.update_time, time.time())),
        Cell(text=route.reason),
    ]


def route_subject(route: route_pb2.Route) -> list[Cell]:
    """Return which route it is, for the start of a line."""
    return [Cell(text=route.vm_id[:SHORT_ID], style="bold"), Cell(text=route.prefix, style="bold")]


def route_cells(route: route_pb2.Route) -> list[Cell]:
    """Return where a route leads and what requests get, for one line."""
    cells = [
        *route_subject(route),
        Cell(text=f"→ {target(route.target)}"),
        styled(route_state(route.state)),
        Cell(text=f"revision {route.revision}"),
    ]
    if route.generation:
        cells.append(Cell(text=f"epoch {route.epoch} generation {route.generation}"))
    return [*cells, *(Cell(text=text) for text in (route.reason, route.message) if text)]


def event_cells(event: event_pb2.Event) -> list[Cell]:
    """Return what happened to what, for one line."""
    subject = "/".join(part for part in (event.vm_id[:SHORT_ID], event.container_name) if part) or "node"
    return [Cell(text=subject, style="bold"), *_payload(event)]


def _payload(event: event_pb2.Event) -> list[Cell]:
    match event.WhichOneof("payload"):
        case "vm_state_changed":
            change = event.vm_state_changed
            return _change(vm_state(change.to), change.reason, change.message)
        case "container_state_changed":
            changed = event.container_state_changed
            return _change(container_state(changed.to), changed.reason, changed.message)
        case "container_health_changed":
            return [styled(health(event.container_health_changed.to))]
        case "container_oom_killed":
            return [Cell(text=f"OOM_KILLED ({event.container_oom_killed.oom_kills} so far)", style="red")]
        case "container_deleted":
            kept = "" if event.container_deleted.persistent_paths else "its persistent paths are kept"
            return _change("DELETED", "", kept)
        case "agent_misbehaved":
            misdeed = event.agent_misbehaved
            return _change("AGENT_MISBEHAVED", misdeed.kind, misdeed.message)
        case "anomaly":
            return _change("ANOMALY", event.anomaly.kind, event.anomaly.message)
        case "route_switched":
            switch = event.route_switched
            way = f"{switch.prefix} {target(getattr(switch, 'from'))} → {target(switch.to)}"
            return [styled("SWITCHED"), Cell(text=way)]
        case "route_refused":
            refused = event.route_refused
            way = f"{refused.prefix} → {target(refused.target)}"
            return [styled("REFUSED"), Cell(text=way), Cell(text=refused.message)]
        case "node_drain_changed":
            return [Cell(text="DRAINING" if event.node_drain_changed.draining else "TAKES_VMS")]
        case _:
            return [Cell(text="OTHER")]


def _change(state: str, reason: str, message: str) -> list[Cell]:
    return [styled(state), *(Cell(text=text) for text in (reason, message) if text)]
