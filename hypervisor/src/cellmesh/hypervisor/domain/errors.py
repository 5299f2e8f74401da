"""What can go wrong, one class per reason of the contract; each message says what happened and what to do."""

from __future__ import annotations

from cellmesh.mesh.errors import Code, MeshError

_HYPERVISOR = "hypervisor.cellmesh"
_GUEST = "guest.cellmesh"


class ImpossibleTransition(MeshError):
    """A VM cannot go from one state to another; a fault of ours."""

    def __init__(self, *, vm_id: str, origin: str, target: str) -> None:
        super().__init__(f"VM {vm_id} cannot go from {origin} to {target}.")


class VmNotFound(MeshError):
    """No VM of this id or user."""

    code = Code.NOT_FOUND
    reason = "VM_NOT_FOUND"
    domain = _HYPERVISOR

    def __init__(self, key: str) -> None:
        super().__init__(f"There is no VM {key}; it was deleted or never created.")


class VmAlreadyExists(MeshError):
    """The user has a VM already."""

    code = Code.ALREADY_EXISTS
    reason = "VM_ALREADY_EXISTS"
    domain = _HYPERVISOR

    def __init__(self, user_id: str, vm_id: str) -> None:
        super().__init__(
            f"User {user_id} has VM {vm_id} already; use that one, or delete it first.", metadata={"vm_id": vm_id}
        )


class VmDeleting(MeshError):
    """The VM is being removed."""

    code = Code.FAILED_PRECONDITION
    reason = "VM_DELETING"
    domain = _HYPERVISOR

    def __init__(self, vm_id: str) -> None:
        super().__init__(f"VM {vm_id} is being deleted; wait until it is gone, then create another.")


class VmQuarantined(MeshError):
    """What runs for the VM could not be told for sure."""

    code = Code.FAILED_PRECONDITION
    reason = "VM_QUARANTINED"
    domain = _HYPERVISOR

    def __init__(self, vm_id: str) -> None:
        super().__init__(f"VM {vm_id} is QUARANTINED; read its message, then delete it with force.")


class VmNotRunning(MeshError):
    """The VM does not run."""

    code = Code.FAILED_PRECONDITION
    reason = "VM_NOT_RUNNING"
    domain = _HYPERVISOR

    def __init__(self, vm_id: str, state: str) -> None:
        super().__init__(f"VM {vm_id} is {state}; start it and wait until it is RUNNING.")


class ImageNotFound(MeshError):
    """No image of this digest on the node."""

    code = Code.NOT_FOUND
    reason = "IMAGE_NOT_FOUND"
    domain = _HYPERVISOR


class NodeFull(MeshError):
    """The node has no room for another VM."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "NODE_FULL"
    domain = _HYPERVISOR


class NodeDraining(MeshError):
    """The node takes no new VMs."""

    code = Code.FAILED_PRECONDITION
    reason = "NODE_DRAINING"
    domain = _HYPERVISOR

    def __init__(self) -> None:
        super().__init__("The node is draining and takes no new VMs or starts; use another node.")


class NodeShuttingDown(MeshError):
    """The hypervisor is stopping."""

    code = Code.UNAVAILABLE
    reason = "NODE_SHUTTING_DOWN"
    domain = _HYPERVISOR

    def __init__(self) -> None:
        super().__init__("The hypervisor is stopping; try again in a moment.")


class ContainerNotFound(MeshError):
    """No container of this name in the VM."""

    code = Code.NOT_FOUND
    reason = "CONTAINER_NOT_FOUND"
    domain = _HYPERVISOR

    def __init__(self, vm_id: str, name: str) -> None:
        super().__init__(f"VM {vm_id} has no container {name}; start it first.")


class ContainerNotRunning(MeshError):
    """The container's process does not run."""

    code = Code.FAILED_PRECONDITION
    reason = "CONTAINER_NOT_RUNNING"
    domain = _HYPERVISOR


class ContainerStartFailed(MeshError):
    """The container could not be started."""

    code = Code.FAILED_PRECONDITION
    reason = "CONTAINER_START_FAILED"
    domain = _HYPERVISOR


class ContainerRunning(MeshError):
    """The container is wanted or its process runs."""

    code = Code.FAILED_PRECONDITION
    reason = "CONTAINER_RUNNING"
    domain = _HYPERVISOR

    def __init__(self, name: str, state: str) -> None:
        super().__init__(f"Container {name} is {state}; stop it first, or delete it with force.")


class ContainerRouted(MeshError):
    """A route leads to the container."""

    code = Code.FAILED_PRECONDITION
    reason = "CONTAINER_ROUTED"
    domain = _HYPERVISOR

    def __init__(self, name: str, prefix: str) -> None:
        super().__init__(
            f"Route {prefix} leads to container {name}; switch it to another container first.",
            metadata={"prefix": prefix},
        )


class ContainerChanged(MeshError):
    """The container was changed by another request while this one was carried out."""

    code = Code.ABORTED
    reason = "CONTAINER_CHANGED"
    domain = _HYPERVISOR

    def __init__(self, name: str) -> None:
        super().__init__(f"Container {name} was changed meanwhile; look at it, then decide anew.")


class DataDiskFull(MeshError):
    """The VM's data disk has no room for what a container needs."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "DATA_DISK_FULL"
    domain = _HYPERVISOR


class ProviderKeyPresent(MeshError):
    """The container's environment or image carries a provider key."""

    code = Code.FAILED_PRECONDITION
    reason = "PROVIDER_KEY_PRESENT"
    domain = _HYPERVISOR


class TooManyContainers(MeshError):
    """The VM has as many containers as it may."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_CONTAINERS"
    domain = _HYPERVISOR

    def __init__(self, vm_id: str, most: int) -> None:
        super().__init__(
            f"VM {vm_id} has {most} containers already, the most there can be; delete one, or reuse a name."
        )


class GenerationNotFound(MeshError):
    """The agent keeps no output of this generation."""

    code = Code.NOT_FOUND
    reason = "GENERATION_NOT_FOUND"
    domain = _HYPERVISOR


class RouteNotFound(MeshError):
    """The VM has no route of this prefix."""

    code = Code.NOT_FOUND
    reason = "ROUTE_NOT_FOUND"
    domain = _HYPERVISOR

    def __init__(self, vm_id: str, prefix: str) -> None:
        super().__init__(f"VM {vm_id} has no route {prefix}; start the container it is to lead to first.")


class RouteChanged(MeshError):
    """The route has another revision than the one that was named."""

    code = Code.ABORTED
    reason = "ROUTE_CHANGED"
    domain = _HYPERVISOR

    def __init__(self, prefix: str, *, expected: int, found: int) -> None:
        super().__init__(
            f"Route {prefix} has revision {found}, not {expected}; read it again, then decide anew.",
            metadata={"revision": str(found)},
        )


class RouteRefused(MeshError):
    """The edge did not take the route; the message, escaped, has its reason."""

    code = Code.FAILED_PRECONDITION
    reason = "ROUTE_REFUSED"
    domain = _HYPERVISOR

    def __init__(self, said: str) -> None:
        super().__init__(f"The edge refused the route, which leads where it led before: {said}")
        self.said = said


class EdgeUnreachable(MeshError):
    """No edge is connected, or it does not answer."""

    code = Code.UNAVAILABLE
    reason = "EDGE_UNREACHABLE"
    domain = _HYPERVISOR


class ExecNotFound(MeshError):
    """No command of this exec_id."""

    code = Code.NOT_FOUND
    reason = "EXEC_NOT_FOUND"
    domain = _HYPERVISOR


class ExecStartFailed(MeshError):
    """The command could not be started."""

    code = Code.FAILED_PRECONDITION
    reason = "EXEC_START_FAILED"
    domain = _HYPERVISOR


class ExecOffsetGone(MeshError):
    """The output wanted was acknowledged and dropped, or the input has a gap."""

    code = Code.OUT_OF_RANGE
    reason = "EXEC_OFFSET_GONE"
    domain = _HYPERVISOR


class TooManyExecs(MeshError):
    """The VM runs as many commands as it may."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_EXECS"
    domain = _HYPERVISOR


class ExecAttachedElsewhere(MeshError):
    """A later stream took the command over."""

    code = Code.ABORTED
    reason = "EXEC_ATTACHED_ELSEWHERE"
    domain = _HYPERVISOR


class GuestUnreachable(MeshError):
    """The VM's agent does not answer."""

    code = Code.UNAVAILABLE
    reason = "GUEST_UNREACHABLE"
    domain = _HYPERVISOR


class GuestMisbehaved(MeshError):
    """The VM's agent broke the contract."""

    code = Code.INTERNAL
    reason = "GUEST_MISBEHAVED"
    domain = _HYPERVISOR


class GuestRebooted(MeshError):
    """Another boot of the guest already said Hello in this epoch."""

    code = Code.FAILED_PRECONDITION
    reason = "GUEST_REBOOTED"
    domain = _GUEST


class VmNotStarting(MeshError):
    """A guest said Hello for a VM that is not being started."""

    code = Code.FAILED_PRECONDITION
    reason = "VM_NOT_STARTING"
    domain = _GUEST


class WrongEpoch(MeshError):
    """A guest speaks for another boot of its VM."""

    code = Code.FAILED_PRECONDITION
    reason = "WRONG_EPOCH"
    domain = _GUEST


class TooManyReports(MeshError):
    """The reports of a guest come faster than the host takes them."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_REPORTS"
    domain = _GUEST
